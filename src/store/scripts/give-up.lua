-- Gives models of a job in progress up: from now on its lines that name them are answered with an error.
-- KEYS[1] job
-- ARGV    models, as a JSON list · the event's message
-- Returns 1 when given up, now or before; 0 when the job is not in progress, paused or gone, or would have no model left
-- Repeat  the same: what was given up stays so
local job = KEYS[1]
local found = redis.call('HMGET', job, 'state', 'paused_at', 'models', 'given_up')
local all, set, fresh = cjson.decode(found[4] or '[]'), {}, 0
for _, model in ipairs(all) do set[model] = true end
for _, model in ipairs(cjson.decode(ARGV[1])) do
  if not set[model] then
    set[model] = true
    all[#all + 1] = model
    fresh = fresh + 1
  end
end
if fresh == 0 then return 1 end
if found[1] ~= 'in_progress' or found[2] then return 0 end
if #all >= #cjson.decode(found[3] or '[]') then return 0 end
redis.call('HSET', job, 'given_up', cjson.encode(all))
redis.call('XADD', job .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', found[1], 'message', ARGV[2], 'kind', 'given_up')
return 1
