-- Takes an entry out of the intake because a decided verdict already stands.
-- Follows verdicts, entries.
--
-- KEYS  1 the stream the entry is in   2 moderation:verdict:{content_id}, read
-- ARGV  1 group  2 entry id  3 content_id
-- Returns 1 where it was dropped, or is another's by now; 0 where there is no decided verdict (any more): then it has
-- to be judged.

local standing = standing_verdict(KEYS[2])
if not standing or standing.status ~= 'decided' then
  return 0
end
if is_about(KEYS[1], ARGV[2], ARGV[3]) then
  leave(KEYS[1], ARGV[1], ARGV[2])
end
return 1
