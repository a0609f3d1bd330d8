-- Gives a deployment template other contents, if it still is what the caller read. What a job has used stays what it
-- was, but for its status: a version that means two things would mean nothing.
-- KEYS[1] model
-- ARGV    op id · template · expected revision · its new name and version as one text · name · version · status · spec
-- Returns 'changed' | 'stale': another revision | 'used' | 'taken': another one has that name and version | 'gone'
-- Repeat  'changed', by the op id
local model, op, id, revision, handle = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local template = model .. TEMPLATE .. id
local found = redis.call('HMGET', template, 'op', 'revision', 'name', 'version', 'spec', 'used_at', 'handle')
if not found[2] then return 'gone' end
if found[1] == op then return 'changed' end
if found[2] ~= revision then return 'stale' end
local isRenamed = found[3] ~= ARGV[5] or found[4] ~= ARGV[6]
if found[6] and (isRenamed or found[5] ~= ARGV[8]) then return 'used' end
if isRenamed then
  if redis.call('HSETNX', model .. VERSIONS, handle, id) == 0 then return 'taken' end
  redis.call('HDEL', model .. VERSIONS, found[7])
end
redis.call('HSET', template, 'op', op, 'handle', handle, 'name', ARGV[5], 'version', ARGV[6], 'status', ARGV[7],
  'spec', ARGV[8], 'updated_at', now())
redis.call('HINCRBY', template, 'revision', 1)
return 'changed'
