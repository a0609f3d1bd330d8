-- Removes a model that has no deployment template.
-- KEYS[1] model
-- ARGV    op id
-- Returns 'removed' | 'used': it has templates, and stays | 'gone'
-- Repeat  the same, by the op id, which outlives the record for a minute
local model, op = KEYS[1], ARGV[1]
if redis.call('GET', model .. REMOVED) == op then return 'removed' end
if redis.call('ZCARD', model .. TEMPLATES) > 0 then return 'used' end
if redis.call('DEL', model) == 0 then return 'gone' end
redis.call('SET', model .. REMOVED, op, 'EX', 60)
return 'removed'
