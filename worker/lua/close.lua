-- Closes the circuit breaker once no withheld ban is left, and begins to count anew; one that is closed stays as it is.
--
-- KEYS  1 moderation:withheld   2 moderation:ban-window
-- ARGV  1 discard 0/1: whatever is withheld keeps its verdict, for a person
-- Returns {closed 0/1, or 2 where it was closed before, how many were discarded}.

if redis.call('HEXISTS', KEYS[1], '#opened') == 0 then
  return {2, 0}
end
local withheld = redis.call('HLEN', KEYS[1]) - redis.call('HEXISTS', KEYS[1], '#opened')
if withheld > 0 and ARGV[1] ~= '1' then
  return {0, 0}
end
redis.call('DEL', KEYS[1], KEYS[2])
return {1, withheld}
