-- Publishes outcomes and takes their entries out of the intake, each of them in one atomic step.
-- Many in one call: what they share is sent once. One that fails leaves the others alone, and its error in its place.
-- Follows verdicts, entries.
--
-- KEYS  1 moderation:verdicts                  one entry per effective verdict, trimmed to the TTL
--       2 moderation:dead-letter               written only where a reason is named
--       3 moderation:overrides                 people's decisions by content ID
--       4 moderation:known                     the same by SHA-256
--       5 moderation:withheld                  bans withheld by the open circuit breaker; '#opened' while it is open
--       6 moderation:ban-window                decided by models and banned lately, in slices of time
--       and four for each outcome:
--       1 the stream the entry came from       the entry leaves it here
--       2 moderation:verdict:{content_id}      the standing verdict's document, with the TTL
--       3 moderation:alone:{stream}:{entry}    the mark of an entry judged alone; not needed any more
--       4 moderation:answered:{content_id}     when the latest rescan that was answered was asked for, ms
-- ARGV  1 group  2 TTL in seconds
--       3 quota: share of bans  4 of at least so many decided  5 number of bans, 0 is off  6 window in seconds
--       and fifteen for each outcome:
--       1 entry id  2 content_id  3 document without its last two fields
--       4 rescan 0/1  5 status  6 label  7 ban 0/1 : review 0/1  8 placement
--       9 dead-letter reason or ''  10 dead-letter detail  11 when it was first enqueued, ms
--       12 SHA-256 or ''  13 entry of the person's decision that the document states, or ''
--       14 a ban's document while the breaker is open, or ''  15 its placement
-- Returns for each outcome {outcome, decided at in ms on Redis's clock, ...}, or an error; outcome is one of
--       published | withheld | opened (withheld, and the first to be) | duplicate (a verdict stands) |
--       unchanged (a rescan agreed) | gone (somebody else's by now) |
--       overruled (nothing was done: the document must state this person's decision: label, entry, note; '' for none)

local SLICES, SHARED_KEYS, ITS_KEYS, SHARED_ARGS, ITS_ARGS = 60, 6, 4, 6, 15
local ANSWERED_S = 3600 -- longer than anything stays in work
local VERDICTS, DEAD_LETTER, OVERRIDES, KNOWN, WITHHELD, WINDOW = unpack(KEYS, 1, SHARED_KEYS)
local GROUP, TTL_S = ARGV[1], ARGV[2]
local WINDOW_S = ARGV[6]
local NOW = clock() -- stands still while a script runs

local function slice()
  return math.floor(NOW / 1000 * SLICES / tonumber(WINDOW_S))
end

local function turn_window()
  -- Forgets, once in a slice, those before the window, and those after now: they are from before the clock was set
  -- back, and would count until it is there again, so that bans that follow would be a small share of what is
  -- remembered.
  local newest = slice()
  if redis.call('HGET', WINDOW, 'newest') == tostring(newest) then
    return
  end
  local fields = redis.call('HGETALL', WINDOW)
  for i = 1, #fields, 2 do
    local kind, number = string.match(fields[i], '^(%a+):(%d+)$')
    if number and (tonumber(number) <= newest - SLICES or tonumber(number) > newest) then
      redis.call('HINCRBY', WINDOW, kind, -tonumber(fields[i + 1]))
      redis.call('HDEL', WINDOW, fields[i])
    end
  end
  redis.call('HSET', WINDOW, 'newest', tostring(newest))
  redis.call('EXPIRE', WINDOW, 2 * WINDOW_S)
end

local function count(kind)
  redis.call('HINCRBY', WINDOW, kind, 1)
  redis.call('HINCRBY', WINDOW, kind .. ':' .. slice(), 1)
end

local function breaker()
  -- What becomes of one more ban: 'withheld' while the breaker is open, 'opened' where this one is above the quota and
  -- opens it, else nil.
  if redis.call('HEXISTS', WITHHELD, '#opened') == 1 then
    return 'withheld'
  end
  local decided = 1 + (tonumber(redis.call('HGET', WINDOW, 'decided') or '0'))
  local bans = 1 + (tonumber(redis.call('HGET', WINDOW, 'bans') or '0'))
  local share, least, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  if (decided >= least and bans > share * decided) or (most > 0 and bans > most) then
    redis.call('HSET', WITHHELD, '#opened', cjson.encode({at = iso(NOW), bans = bans, decided = decided}))
    return 'opened'
  end
  return nil
end

local function asked_before(answered, v)
  -- Whether a later rescan was answered already: of two in work at once the earlier may have read older bytes, and
  -- publish last.
  local latest = v.rescan == '1' and redis.pcall('GET', answered)
  return type(latest) == 'string' and (tonumber(latest) or 0) > tonumber(v.enqueued_ms)
end

local function already(standing, v)
  -- How the standing verdict ends this outcome, or nil.
  if not standing then
    return nil
  elseif v.status == 'undecided' or (standing.status == 'decided' and (v.rescan ~= '1' or v.late)) then
    return 'duplicate'
  elseif standing.label == v.label and standing.flags == v.flags and standing.placement == v.placement then
    return 'unchanged'
  end
  return nil
end

local function of_other_bytes(outcome, standing, v)
  -- Whether what agrees with the standing verdict, or is undecided once more, was found in other bytes: those under a
  -- content ID can be replaced.
  return (outcome == 'unchanged' or (outcome == 'duplicate' and standing.status == 'undecided'))
    and v.digest ~= '' and v.digest ~= standing.content_sha256 and not v.late
end

local function withhold(verdict, standing, v)
  -- Publishes in place of a ban what a person is to look at, and keeps the ban until the breaker is closed. Returns when
  -- it was decided, and 'unchanged' where it is what stands already.
  local ban = v.document
  v.document, v.flags, v.placement = v.instead, '0:1', v.instead_placement
  local agrees = already(standing, v)
  local now = agrees and NOW or take_effect(verdict, VERDICTS, TTL_S, NOW, standing, v)
  redis.call('HSET', WITHHELD, v.content_id, (agrees and standing.decided_at or iso(now)) .. ' ' .. ban)
  return now, agrees
end

local function publish(stream, verdict, alone, answered, v)
  -- Nothing is removed before everything that can fail has been done: a script is atomic, but not rolled back.
  if not is_about(stream, v.entry, v.content_id) then
    return {'gone', 0}
  end
  local person = decision_in_force(OVERRIDES, v.content_id, KNOWN, v.digest)
  if (person and person[2] or '') ~= v.decision then
    return {'overruled', 0, unpack(person or {'', '', ''})}
  end

  v.late = asked_before(answered, v)
  local now, standing, withheld = NOW, standing_verdict(verdict), nil
  local outcome = already(standing, v)
  local counts = not person and v.status == 'decided' and outcome ~= 'duplicate'
  if counts then
    turn_window()
    withheld = not outcome and v.instead ~= '' and breaker() or nil
  end
  if withheld then
    now, outcome = withhold(verdict, standing, v)
    outcome = outcome or withheld
  elseif not outcome then
    now = take_effect(verdict, VERDICTS, TTL_S, now, standing, v)
    outcome = 'published'
  end
  if of_other_bytes(outcome, standing, v) then
    -- Whoever looks at the picture now sees these, and a decision must not be kept for those before.
    redis.call('SET', verdict, finished(v.document, standing.decided_at, standing.supersedes), 'EX', TTL_S)
  elseif outcome == 'unchanged' then
    redis.call('EXPIRE', verdict, TTL_S)
  end
  if counts then
    -- Rescans that agree, too: what they change is nearly all bans where a version had overlooked some, and of changes
    -- alone they would be a share above any quota.
    count('decided')
    if outcome == 'published' and v.instead ~= '' then
      count('bans')
    end
  end
  if outcome ~= 'duplicate' and not withheld then
    redis.call('HDEL', WITHHELD, v.content_id) -- what was withheld before is settled by this
  end
  if v.dead_reason ~= '' then
    give_up(DEAD_LETTER, stream, v, now)
  end
  if v.rescan == '1' and v.status == 'decided' and not v.late then
    -- No later than now, whatever date the entry bears: anyone may write one.
    redis.call('SET', answered, string.format('%.0f', math.min(tonumber(v.enqueued_ms), NOW)), 'EX', ANSWERED_S)
  end
  redis.call('DEL', alone)
  leave(stream, GROUP, v.entry)
  return {outcome, now}
end

local replies = {}
for i = 0, (#KEYS - SHARED_KEYS) / ITS_KEYS - 1 do
  local k, a = SHARED_KEYS + i * ITS_KEYS, SHARED_ARGS + i * ITS_ARGS
  local done, reply = pcall(publish, KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4], {
    entry = ARGV[a + 1], content_id = ARGV[a + 2], document = ARGV[a + 3], rescan = ARGV[a + 4],
    status = ARGV[a + 5], label = ARGV[a + 6], flags = ARGV[a + 7], placement = ARGV[a + 8],
    dead_reason = ARGV[a + 9], dead_detail = ARGV[a + 10], enqueued_ms = ARGV[a + 11], digest = ARGV[a + 12],
    decision = ARGV[a + 13], instead = ARGV[a + 14], instead_placement = ARGV[a + 15],
  })
  replies[i + 1] = done and reply or (type(reply) == 'table' and reply or {err = 'ERR ' .. tostring(reply)})
end
return replies
