-- Moves a dead letter back to the end of the stream it came from.
--
-- KEYS  1 moderation:dead-letter   2 the stream it came from
-- ARGV  1 the dead letter's entry id  2 content_id  3 rescan 0/1
-- Returns 1, or 0 where the dead letter is gone already.

if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', 'content_id', ARGV[2], 'rescan', ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
