-- Removes consumers of processes that are long gone; one with claims is kept, for removing it would strand them.
--
-- KEYS  1 the stream
-- ARGV  1 group  2 idle for at least so many ms
-- Returns how many were removed.

local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #info, 2 do
    consumer[info[i]] = info[i + 1]
  end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
