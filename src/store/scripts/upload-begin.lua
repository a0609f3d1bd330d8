-- Lets one attempt at joining an upload's parts run for a time, or go on, or ends it (0 ms).
-- KEYS[1] upload
-- ARGV    the file that the attempt writes · ms
-- Returns 'begun' | 'busy': another one runs | 'over': the upload is not pending, or its time is over
-- Repeat  'begun', by the attempt
local upload, file, ms, at = KEYS[1], ARGV[1], tonumber(ARGV[2]), now()
local found = redis.call('HMGET', upload, 'status', 'expires_at', 'attempt', 'busy_until')
if found[1] ~= 'pending' then return 'over' end
local isBusy = tonumber(found[4] or 0) > at
if isBusy and found[3] ~= file then return 'busy' end
if not isBusy and tonumber(found[2]) <= at then return 'over' end
-- Known before it writes, so that its bytes are found whatever becomes of it.
redis.call('SADD', upload .. UPLOAD_FILES, file)
redis.call('HSET', upload, 'attempt', file, 'busy_until', string.format('%.0f', at + ms))
return 'begun'
