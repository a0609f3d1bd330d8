-- Writes why a record stands where it stands; a final one keeps what it says.
-- KEYS[1] record
-- ARGV    reason
-- Returns 1 when written, 0 when the record is final or gone
-- Repeat  the same
local state = redis.call('HGET', KEYS[1], 'state')
if not state or FINAL[state] then return 0 end
redis.call('HSET', KEYS[1], 'reason', ARGV[1], 'reason_at', now())
return 1
