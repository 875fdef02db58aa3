-- Puts what is due for its next attempt back into the intake, uploads before backfill.
-- Follows clock.
--
-- KEYS  1 moderation:retry   2 moderation:uploads   3 moderation:backfill
-- ARGV  1 how many of each at most, and of both  2 the longest pause there is, in ms
--       3 how many more to look through for uploads  4 the number of this look, from 0
--       5 pause of what its stream refuses, in ms; no longer than the longest
--       6 among how many of the first due uploads are looked for
-- A member is JSON: content_id, backfill, rescan (0/1), enqueued_ms, attempt (numbers), and since when it has failed
-- for a reason, in ms: not_found_since_ms, fetch_failed_since_ms (0 or missing: never for this one);
-- deaths and broken_devices of the processes that judged it alone, where there are any.
-- Returns {how many went back, the error of a stream that takes none or ''}: that one's members stay.

local RETRY, UPLOADS, BACKFILL = unpack(KEYS)
local MOST, LONGEST_PAUSE_MS, MORE, LOOK, REFUSED_MS, REACH = unpack(ARGV)
MOST, MORE = tonumber(MOST), tonumber(MORE)
local now = clock()

local first, last = '-inf', string.format('%.0f', now)
local number = redis.call('ZCOUNT', RETRY, first, last)
if number == 0 then -- what is due later than any pause lasts was put there before the clock was set back
  first, last = string.format('(%.0f', now + tonumber(LONGEST_PAUSE_MS)), '+inf'
  number = redis.call('ZCOUNT', RETRY, first, last)
end

local uploads, backfill, sorted = {}, {}, {}
local function sort(members)
  for _, member in ipairs(members) do
    if not sorted[member] then
      sorted[member] = true
      -- Not decoded yet, for most of what is only looked through stays; where it goes is read from the JSON.
      table.insert(string.find(member, '"backfill": ?1') and backfill or uploads, member)
    end
  end
end
sort(redis.call('ZRANGEBYSCORE', RETRY, first, last, 'LIMIT', 0, MOST))
if number > MOST and #uploads < MOST then
  -- Uploads may stand behind more backfill than one script may go through: each look is at another part. From the end,
  -- for what leaves at the front in between would otherwise push some past the border between two parts unseen; and not
  -- from the end of millions, to which older servers walk.
  local reach = math.min(number, tonumber(REACH))
  local part = tonumber(LOOK) % math.ceil(reach / MORE)
  local from = reach - (part + 1) * MORE
  sort(redis.call('ZRANGEBYSCORE', RETRY, first, last, 'LIMIT', math.max(0, from), MORE + math.min(0, from)))
end

local refused, refusal = {}, ''
local function put_back(member)
  -- Whether it is gone from here: into its stream, or because it is none of ours.
  local ok, item = pcall(cjson.decode, member)
  if ok and type(item) == 'table' and type(item.content_id) == 'string' then
    local stream = item.backfill == 1 and BACKFILL or UPLOADS
    local fields = {'content_id', item.content_id}
    local function add(name, default)
      table.insert(fields, name)
      table.insert(fields, string.format('%.0f', tonumber(item[name]) or default))
    end
    add('rescan', 0)
    add('enqueued_ms', now)
    add('not_found_since_ms', 0)
    add('fetch_failed_since_ms', 0)
    add('attempt', 0)
    if item.deaths or item.broken_devices then
      add('deaths', 0)
      add('broken_devices', 0)
    end
    local reply = refused[stream] or redis.pcall('XADD', stream, '*', unpack(fields))
    if type(reply) == 'table' then
      refused[stream], refusal = reply, reply
      -- Out of the way of what can go back. A server without memory refuses this, too: then it stays where it was.
      redis.pcall('ZADD', RETRY, now + tonumber(REFUSED_MS), member)
      return false
    end
  end
  redis.call('ZREM', RETRY, member)
  return true
end

local woken = 0
for _, waiting in ipairs({uploads, backfill}) do
  for i = 1, math.min(#waiting, MOST - woken) do
    woken = woken + (put_back(waiting[i]) and 1 or 0)
  end
end
return {woken, refusal}
