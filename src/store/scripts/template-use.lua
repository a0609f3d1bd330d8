-- Marks that a job uses a deployment template as the caller has read it.
-- KEYS[1] model
-- ARGV    template · expected revision
-- Returns 'used' | 'stale': another revision | 'gone'
-- Repeat  the same: the first mark stays
local template = KEYS[1] .. TEMPLATE .. ARGV[1]
local revision = redis.call('HGET', template, 'revision')
if not revision then return 'gone' end
if revision ~= ARGV[2] then return 'stale' end
redis.call('HSETNX', template, 'used_at', now())
return 'used'
