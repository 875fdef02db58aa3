-- What the scripts share that take an entry out of the intake; put before each of them.

local function is_about(stream, entry, content_id)
  -- Whether this entry is there, and about this content ID: a server that lost its newest entries, and whose clock is
  -- behind, gives their IDs out a second time.
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  local about = nil
  for i = 1, found and #found[2] or 0, 2 do
    if found[2][i] == 'content_id' then
      about = found[2][i + 1] -- of several the last, as whoever claimed it read it
    end
  end
  return about == content_id
end

