-- Adds a part to an upload that is pending and has time left.
-- KEYS[1] upload
-- ARGV    part · its bytes · most parts of an upload
-- Returns when it was added (ms), or -1: the upload takes no parts, or -2: it has as many as it may
-- Repeat  the same, by the part
local parts = KEYS[1] .. UPLOAD_PARTS
local found = redis.call('HGET', parts, ARGV[1])
if found then return tonumber(string.match(found, '%d+$')) end
local upload, at = redis.call('HMGET', KEYS[1], 'status', 'expires_at'), now()
if upload[1] ~= 'pending' or tonumber(upload[2]) <= at then return -1 end
if redis.call('HLEN', parts) >= tonumber(ARGV[3]) then return -2 end
redis.call('HSET', parts, ARGV[1], string.format('%s %.0f', ARGV[2], at))
return at
