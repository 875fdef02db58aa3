-- Puts a person's decision into force, once, in one atomic step.
-- Follows verdicts.
--
-- KEYS  1 moderation:corrections               acknowledged here; the entry stays, for the trainer
--       2 moderation:verdict:{content_id}      3 moderation:verdicts
--       4 moderation:overrides                 5 moderation:known
--       6 moderation:withheld                  a person's decision settles a withheld ban
-- ARGV  1 group  2 the correction's entry id  3 content_id  4 document without its last two fields  5 TTL in seconds
--       6 what stood at KEYS[2] when the document was made, or ''
--       7 label  8 ban 0/1 : review 0/1  9 placement  10 the decision: JSON with entry, label, by  11 SHA-256 or ''
-- Returns {outcome, decided at in ms on Redis's clock}; outcome is one of
--       published | stale (this or a later correction is in force) | changed (nothing was done: look again).

local own = persons_decision(KEYS[4], ARGV[3])
if own and not later(ARGV[2], own.entry) then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  return {'stale', 0}
end
local raw = redis.pcall('GET', KEYS[2])
if (type(raw) == 'string' and raw or '') ~= ARGV[6] then
  return {'changed', 0}
end
local standing = standing_verdict(KEYS[2])
local digest, withdrawn = ARGV[11], ''
if digest == '' and own and type(own.content_sha256) == 'string' and string.match(own.content_sha256, '^%x+$') then
  -- The verdict has run out, and what lies there now nobody can tell: of the bytes decided on before this says nothing
  -- but that their decision may have been wrong.
  if own.label == ARGV[7] then
    digest = own.content_sha256
  else
    withdrawn = own.content_sha256
  end
end
local decision = digest ~= '' and of_these_bytes(ARGV[10], digest) or ARGV[10]
-- A script is not rolled back: what can fail comes first, so that a correction that fails is asked for again.
for i = 4, 6 do
  redis.call('HLEN', KEYS[i])
end
local now = take_effect(KEYS[2], KEYS[3], ARGV[5], clock(), standing, {
  content_id = ARGV[3], document = ARGV[4], status = 'decided', label = ARGV[7], flags = ARGV[8], placement = ARGV[9],
})
redis.call('HSET', KEYS[4], ARGV[3], decision)
keep_on_bytes(KEYS[5], digest, decision, ARGV[2])
if withdrawn ~= '' and (persons_decision(KEYS[5], withdrawn) or {}).entry == own.entry then
  redis.call('HDEL', KEYS[5], withdrawn)
end
redis.call('HDEL', KEYS[6], ARGV[3])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return {'published', now}
