-- What the scripts share that take an entry out of the intake.

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

local function leave(stream, group, entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end

local function give_up(dead_letters, stream, v, now)
  -- Keeps v {content_id, dead_reason, dead_detail, rescan, enqueued_ms} among the dead letters.
  redis.call('XADD', dead_letters, '*', 'content_id', v.content_id, 'reason', v.dead_reason, 'detail', v.dead_detail,
    'stream', stream, 'rescan', v.rescan, 'enqueued_ms', v.enqueued_ms, 'failed_ms', string.format('%.0f', now))
end

