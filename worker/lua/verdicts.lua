-- What the scripts that read and write verdicts share. Follows clock.

local function object(raw)
  if type(raw) ~= 'string' then -- most often nothing; an error thrown and caught would cost more than all else here
    return nil
  end
  local readable, value = pcall(cjson.decode, raw)
  return readable and type(value) == 'table' and value or nil
end

local function standing_verdict(key)
  -- The verdict in force, or nil. What stands there and is no verdict of ours, or of another type, is overwritten:
  -- it must not hold up the entry.
  local value = object(redis.pcall('GET', key))
  if value and type(value.decided_at) == 'string'
    and string.match(value.decided_at, '^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$') then
    value.flags = (value.ban == true and '1' or '0') .. ':' .. (value.review == true and '1' or '0')
    return value
  end
  return nil
end

local LABELS = {approved = true, not_suitable = true, risked = true}
-- The SHA-256 of an empty object: an upload that is not there yet. What a person says of one is no word on all others,
-- nor on what comes in its place; so its digest is kept with the decision, and not as that of known content.
local OF_NOTHING = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'

local function later(a, b)
  -- Whether stream entry ID a comes after b.
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, a_seq, b_ms, b_seq = tonumber(a_ms), tonumber(a_seq), tonumber(b_ms), tonumber(b_seq)
  return b_ms == nil or a_ms > b_ms or (a_ms == b_ms and a_seq > b_seq)
end

local function persons_decision(key, field)
  -- What a person decided, as correct.lua wrote it: {entry, label, ...}, or nil. An entry that is no ID could not be
  -- told to be earlier or later than another.
  if field == '' then
    return nil
  end
  local value = object(redis.pcall('HGET', key, field))
  return value and type(value.entry) == 'string' and string.match(value.entry, '^%d+%-%d+$') and LABELS[value.label]
    and value or nil
end

local function decision_on_bytes(known, digest)
  -- A person's decision on these bytes, under whatever content ID, or nil.
  return digest ~= OF_NOTHING and persons_decision(known, digest) or nil
end

local function keep_on_bytes(known, digest, decision, entry)
  -- Unless a later one is kept.
  local same = decision_on_bytes(known, digest)
  if digest ~= '' and digest ~= OF_NOTHING and (not same or later(entry, same.entry)) then
    redis.call('HSET', known, digest, decision)
  end
end

local function of_these_bytes(decision, digest)
  -- A person's decision as it is kept, with the bytes that it was made on.
  return string.sub(decision, 1, -2) .. ',"content_sha256":"' .. digest .. '"}'
end

local function decision_in_force(overrides, content_id, known, digest)
  -- A person's decision on this content ID, else on these bytes under another ID: {label, its entry, note}, or nil.
  local own = persons_decision(overrides, content_id)
  if own then
    return {own.label, own.entry, 'human'}
  end
  local same = decision_on_bytes(known, digest)
  return same and {same.label, same.entry, 'known_content'} or nil
end

local function finished(document, decided_at, supersedes)
  -- The whole document, with the two fields that only a script can set.
  supersedes = type(supersedes) == 'string' and '"' .. supersedes .. '"' or 'null'
  return string.sub(document, 1, -2) .. ',"decided_at":"' .. decided_at .. '","supersedes":' .. supersedes .. '}'
end

local function take_effect(key, stream, ttl_s, now, replaced, v)
  -- Writes the verdict v {content_id, document without its last two fields, status, label, flags, placement} in place
  -- of `replaced`; returns when it was decided, in ms. Trims the stream to the TTL unless v.keeps_all.
  if replaced then
    for _ = 1, 256 do -- content ID and decided_at together name a verdict; many may be replaced in one millisecond
      if iso(now) > replaced.decided_at then
        break
      end
      now = now + 1
    end
  end
  local document = finished(v.document, iso(now), replaced and replaced.decided_at)
  local oldest = v.keeps_all and '0' or string.format('%.0f', now - tonumber(ttl_s) * 1000)
  redis.call('XADD', stream, 'MINID', '~', oldest, '*',
    'content_id', v.content_id, 'status', v.status, 'label', v.label,
    'ban', string.sub(v.flags, 1, 1), 'review', string.sub(v.flags, 3, 3), 'placement', v.placement,
    'verdict', document)
  redis.call('SET', key, document, 'EX', ttl_s)
  return now
end

