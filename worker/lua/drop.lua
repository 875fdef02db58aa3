-- Takes an entry out of the intake because a decided verdict already stands. Follows entries.lua.
--
-- KEYS  1 the stream the entry is in   2 moderation:verdict:{content_id}, read
-- ARGV  1 group  2 entry id  3 content_id
-- Returns 1 where it was dropped, or is another's by now; 0 where there is no decided verdict (any more): then it has
-- to be judged.

local raw = redis.pcall('GET', KEYS[2])
local readable, standing = pcall(cjson.decode, type(raw) == 'string' and raw or '')
if not readable or type(standing) ~= 'table' or standing.status ~= 'decided' or type(standing.decided_at) ~= 'string'
  or not string.match(standing.decided_at, '^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$') then
  return 0 -- as publish.lua sees it: what is no verdict of ours will be overwritten
end
if is_about(KEYS[1], ARGV[2], ARGV[3]) then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[1], ARGV[2])
end
return 1
