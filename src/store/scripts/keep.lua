-- Writes fields of a provision beside its state, such as which models its engine serves, or how to log in to its
-- machine; a released one keeps what it says.
-- KEYS[1] provision
-- ARGV    field, value …
-- Returns 1 when written, 0 when the provision is released or gone
-- Repeat  the same
local state = redis.call('HGET', KEYS[1], 'state')
if not state or FINAL[state] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
