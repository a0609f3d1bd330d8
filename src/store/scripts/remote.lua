-- Writes what is known of the remote batch of a job, if it still is what the caller read, and how far it is.
-- KEYS[1] job
-- ARGV    the batch as the caller read it · as it is now, both as JSON · then count, value …
-- Returns 1 when written, now or before; 0 when the batch is another one meanwhile, the job's records stand still, or
--         it is gone
-- Repeat  the same, by the batch
local found = redis.call('HMGET', KEYS[1], 'state', 'remote')
if not found[1] or SEALED[found[1]] then return 0 end
if found[2] ~= ARGV[1] and found[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'remote', ARGV[2], unpack(ARGV, 3))
return 1
