-- Takes an entry out of the intake and keeps it for its next attempt.
-- Follows clock, entries.
--
-- KEYS  1 the stream the entry is in   2 moderation:retry, a sorted set by due time in ms
--       3 moderation:alone:{stream}:{entry}   the marks of an entry judged alone; the member says how many
-- ARGV  1 group  2 entry id  3 pause in ms  4 the member: JSON, see due.lua  5 content_id
-- Returns 1, or 0 where the entry is somebody else's by now.

if not is_about(KEYS[1], ARGV[2], ARGV[5]) then
  return 0
end
redis.call('ZADD', KEYS[2], clock() + tonumber(ARGV[3]), ARGV[4])
redis.call('DEL', KEYS[3])
leave(KEYS[1], ARGV[1], ARGV[2])
return 1
