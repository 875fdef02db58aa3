-- Moves an entry that can never be judged from the intake to the dead letters.
-- Follows clock, entries.
--
-- KEYS  1 the stream the entry is in   2 moderation:dead-letter
-- ARGV  1 group  2 entry id  3 content_id as far as it can be told  4 reason  5 detail  6 rescan 0/1  7 enqueued, ms
-- Returns 1, or 0 where the entry is gone already.

if #redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2]) == 0 then
  return 0
end
give_up(KEYS[2], KEYS[1], {
  content_id = ARGV[3], dead_reason = ARGV[4], dead_detail = ARGV[5], rescan = ARGV[6], enqueued_ms = ARGV[7],
}, clock())
leave(KEYS[1], ARGV[1], ARGV[2])
return 1
