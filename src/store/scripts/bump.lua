-- Raises the version of a provision, so that whoever read it before cannot move it any more.
-- KEYS[1] provision
-- ARGV    op id
-- Returns 1, or 0 when the record is final or gone
-- Repeat  the same, by the op id
local found = redis.call('HMGET', KEYS[1], 'state', 'bump_op')
if not found[1] or FINAL[found[1]] then return 0 end
if found[2] == ARGV[1] then return 1 end
redis.call('HSET', KEYS[1], 'bump_op', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
