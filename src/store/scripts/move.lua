-- Moves a job or a provision to another state, if it still is what the caller read.
-- KEYS[1] record
-- ARGV    op id · from · to · expected version · '1' if `to` has a queue · outcome or '' · '1' to write an event ·
--         its message · then field, value …
-- Returns {version, wake}, or {} when the record is in another state, at another version, or gone
-- Repeat  the same, by the op id; a wake that was raised meanwhile is the one to use
local record, op, from, to, version = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('HMGET', record, 'state', 'version', 'op', 'wake')
if found[3] == op then return { tonumber(found[2]), tonumber(found[4]) } end
if found[1] ~= from or found[2] ~= version then return {} end

-- Another deadline raises no version: what was over when the caller looked may have been extended since.
local function isExtended()
  local found = redis.call('HMGET', record, 'extended', 'deadline')
  return found[1] and now() < tonumber(found[2])
end
if ARGV[6] == 'expired' and isExtended() then return {} end
-- Nor does a pause: a job that has nothing to ask of an engine ends when it is resumed.
if from == 'queued' and to == 'finalizing' and redis.call('HEXISTS', record, 'paused_at') == 1 then return {} end

redis.call('HSET', record, 'state', to, 'op', op, unpack(ARGV, 9))
redis.call('HSETNX', record, to .. '_at', now())
-- Backwards out of `finalizing` the records are unsealed: the job has no outcome any more.
if from == 'finalizing' and not FINAL[to] then redis.call('HDEL', record, 'outcome', 'finalizing_at') end
if ARGV[6] ~= '' then redis.call('HSETNX', record, 'outcome', ARGV[6]) end
-- Who is on the way out is held by nobody; a job that comes back from `finalizing` goes on.
if to == 'cancelling' or SEALED[to] then redis.call('HDEL', record, 'paused_at', 'paused_by') end
if ARGV[7] == '1' then
  -- A job that goes back and forth for days must not grow without end.
  redis.call('XADD', record .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', to, 'message', ARGV[8])
end
return { redis.call('HINCRBY', record, 'version', 1), redis.call('HINCRBY', record, 'wake', ARGV[5]) }
