-- Writes which models of its job a provision's engine serves; a released one keeps what it says.
-- KEYS[1] provision
-- ARGV    models, as a JSON list
-- Returns 1 when written, 0 when the provision is released or gone
-- Repeat  the same
local state = redis.call('HGET', KEYS[1], 'state')
if not state or FINAL[state] then return 0 end
redis.call('HSET', KEYS[1], 'models', ARGV[1])
return 1
