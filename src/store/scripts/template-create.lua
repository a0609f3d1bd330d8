-- Gives a model a deployment template under a name and version that it does not have yet.
-- KEYS[1] model
-- ARGV    op id · template · its name and version as one text · name · version · status · spec
-- Returns 'created' | 'no model' | 'taken': the model has that name and version
-- Repeat  'created', by the op id
local model, op, id, handle = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local template = model .. TEMPLATE .. id
if redis.call('HGET', template, 'op') == op then return 'created' end
if redis.call('EXISTS', model) == 0 then return 'no model' end
if redis.call('HSETNX', model .. VERSIONS, handle, id) == 0 then return 'taken' end
redis.call('HSET', template, 'op', op, 'handle', handle, 'name', ARGV[4], 'version', ARGV[5], 'status', ARGV[6],
  'spec', ARGV[7], 'revision', 1, 'created_at', now(), 'updated_at', now())
redis.call('ZADD', model .. TEMPLATES, now(), id)
return 'created'
