-- Changes what somebody may change of a job that has no outcome yet: whether it is paused, and its deadline.
-- KEYS[1] job
-- ARGV    op id · kind of the event · its message · then field, value …; '@now' stands for the present time, and an
--         empty value removes the field
-- Returns 1 when changed, 0 when the job is on its way out, final, or gone
-- Repeat  1, by the op id of the last change; 0 as long as the job is what it was
local job, op = KEYS[1], ARGV[1]
local found = redis.call('HMGET', job, 'state', 'amend_op')
local state = found[1]
if found[2] == op then return 1 end
if not state or state == 'cancelling' or SEALED[state] then return 0 end
redis.call('HSET', job, 'amend_op', op)
for i = 4, #ARGV, 2 do
  local value = ARGV[i + 1]
  if value == '' then
    redis.call('HDEL', job, ARGV[i])
  else
    redis.call('HSET', job, ARGV[i], value == '@now' and now() or value)
  end
end
redis.call('XADD', job .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', state, 'message', ARGV[3], 'kind', ARGV[2])
return 1
