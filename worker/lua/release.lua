-- Lets one withheld ban take effect after all.
-- Follows verdicts.
--
-- KEYS  1 moderation:withheld   2 moderation:verdict:{content_id}   3 moderation:verdicts
--       4 moderation:overrides  5 moderation:known                  people's decisions stand
--       6 moderation:uploads    a rescan goes there, where a person has decided on the same bytes in between
-- ARGV  1 content_id  2 TTL in seconds  3 SHA-256 or ''  4 what was read at KEYS[1]
--       5 1 where that is a ban of ours on this content ID; else it is only taken away
-- Returns published | superseded (another verdict or a person's decision came in between) | changed (look again).

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[4] then
  return 'changed'
end
-- It is taken away last: a script is not rolled back, and what fails stays withheld.
local decided_at, document = string.match(ARGV[4], '^(%S+) (.*)$')
if ARGV[5] ~= '1' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 'superseded'
end
local standing = standing_verdict(KEYS[2])
local person = decision_in_force(KEYS[4], ARGV[1], KEYS[5], ARGV[3])
if person and person[3] == 'known_content' then
  redis.call('XADD', KEYS[6], '*', 'content_id', ARGV[1], 'rescan', '1')
end
if person or (standing and standing.decided_at ~= decided_at) then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 'superseded'
end
take_effect(KEYS[2], KEYS[3], ARGV[2], clock(), standing, {
  content_id = ARGV[1], document = document, status = 'decided', label = 'risked', flags = '1:0', placement = 'removed',
  keeps_all = true, -- whoever closes the breaker may be told of another TTL than the workers
})
redis.call('HDEL', KEYS[1], ARGV[1])
return 'published'
