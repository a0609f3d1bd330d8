-- Brings a pending upload to a final status, once.
-- KEYS[1] upload
-- ARGV    op id · status · of a completed one: file · sha256 · md5 · its list of parts
-- Returns 'ended' | 'over': it has ended otherwise, its hour is over, or, to expire, it is not over yet
-- Repeat  'ended', by the op id
local upload, op, to, at = KEYS[1], ARGV[1], ARGV[2], now()
local found = redis.call('HMGET', upload, 'status', 'end_op', 'expires_at', 'busy_until')
if found[2] == op then return 'ended' end
if found[1] ~= 'pending' then return 'over' end
-- Past its hour an upload has only time while its parts are being joined.
local isOver = tonumber(found[3]) <= at and tonumber(found[4] or 0) <= at
if isOver ~= (to == 'expired') then return 'over' end
redis.call('HSET', upload, 'status', to, 'end_op', op, 'ended_at', string.format('%.0f', at))
redis.call('HDEL', upload, 'attempt', 'busy_until')
if to == 'completed' then
  redis.call('HSET', upload, 'file', ARGV[3], 'sha256', ARGV[4], 'md5', ARGV[5], 'list', ARGV[6])
end
return 'ended'
