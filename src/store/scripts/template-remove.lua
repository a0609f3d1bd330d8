-- Removes a deployment template that no job has used.
-- KEYS[1] model
-- ARGV    op id · template
-- Returns 'removed' | 'used' | 'gone'
-- Repeat  the same, by the op id, which outlives the record for a minute
local model, op, id = KEYS[1], ARGV[1], ARGV[2]
local template = model .. TEMPLATE .. id
if redis.call('GET', template .. REMOVED) == op then return 'removed' end
local found = redis.call('HMGET', template, 'handle', 'revision', 'used_at')
if not found[2] then return 'gone' end
if found[3] then return 'used' end
redis.call('HDEL', model .. VERSIONS, found[1])
redis.call('ZREM', model .. TEMPLATES, id)
redis.call('DEL', template)
redis.call('SET', template .. REMOVED, op, 'EX', 60)
return 'removed'
