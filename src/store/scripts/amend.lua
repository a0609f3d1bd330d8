-- Changes what somebody may change of a job that has no outcome yet: whether it is paused, and its deadline.
-- KEYS[1] job
-- ARGV    op id · kind of the event · its message · then field, value …; the present time stands for what `paused_at` is
--         given, and an empty value removes a field
-- Returns 1 when changed or paused or resumed before, 0 when the job is on its way out, final, or gone, or has that
--         deadline or a later one
-- Repeat  1, by the op id of the last change; 0 as long as the job is what it was
local job, op = KEYS[1], ARGV[1]
local found = redis.call('HMGET', job, 'state', 'amend_op', 'paused_at', 'deadline')
local state = found[1]
if found[2] == op then return 1 end
if not state or state == 'cancelling' or SEALED[state] then return 0 end
-- Of two who pause, or resume, at once the first one is in the history; of two who extend, the longer one wins.
local kind, isHeld = ARGV[2], found[3] and found[3] ~= ''
if kind == 'paused' and isHeld or kind == 'resumed' and not isHeld then return 1 end
for i = 4, #ARGV, 2 do
  if ARGV[i] == 'deadline' and tonumber(ARGV[i + 1]) <= tonumber(found[4] or 0) then return 0 end
end
redis.call('HSET', job, 'amend_op', op)
for i = 4, #ARGV, 2 do
  local value = ARGV[i + 1]
  if value == '' then
    redis.call('HDEL', job, ARGV[i])
  else
    redis.call('HSET', job, ARGV[i], ARGV[i] == 'paused_at' and now() or value)
  end
end
redis.call('XADD', job .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', state, 'message', ARGV[3], 'kind', kind)
return 1
