-- Adds content IDs to a stream of the intake, all of them or, where it has no room for all, none.
--
-- KEYS  1 moderation:uploads or moderation:backfill
-- ARGV  1 most entries that the stream may hold, 0 is any number  2 rescan 0/1  3... content IDs
-- Returns 1, or 0 where there was no room.

local most = tonumber(ARGV[1])
if most > 0 and redis.call('XLEN', KEYS[1]) + #ARGV - 2 > most then
  return 0
end
for i = 3, #ARGV do
  if ARGV[2] == '1' then
    redis.call('XADD', KEYS[1], '*', 'content_id', ARGV[i], 'rescan', '1')
  else
    redis.call('XADD', KEYS[1], '*', 'content_id', ARGV[i])
  end
end
return 1
