-- Puts what is due for its next attempt back into the intake.
--
-- KEYS  1 moderation:retry   2 moderation:uploads   3 moderation:backfill
-- ARGV  1 how many at most  2 the longest pause there is, in ms
-- A member is JSON: content_id, backfill, rescan (0/1), enqueued_ms, attempt (numbers), and since when it has failed
-- for a reason, in ms: not_found_since_ms, fetch_failed_since_ms (0 or missing: never for this one).
-- Returns how many went back.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if #due == 0 then -- what is due later than any pause lasts was put there before the clock was set back
  local beyond = string.format('(%.0f', now + tonumber(ARGV[2]))
  due = redis.call('ZRANGEBYSCORE', KEYS[1], beyond, '+inf', 'LIMIT', 0, ARGV[1])
end
for _, member in ipairs(due) do
  local ok, item = pcall(cjson.decode, member)
  if ok and type(item) == 'table' and type(item.content_id) == 'string' then
    redis.call('XADD', item.backfill == 1 and KEYS[3] or KEYS[2], '*',
      'content_id', item.content_id, 'rescan', string.format('%.0f', tonumber(item.rescan) or 0),
      'enqueued_ms', string.format('%.0f', tonumber(item.enqueued_ms) or now),
      'not_found_since_ms', string.format('%.0f', tonumber(item.not_found_since_ms) or 0),
      'fetch_failed_since_ms', string.format('%.0f', tonumber(item.fetch_failed_since_ms) or 0),
      'attempt', string.format('%.0f', tonumber(item.attempt) or 0))
  end
  redis.call('ZREM', KEYS[1], member)
end
return #due
