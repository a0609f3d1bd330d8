-- Writes into a job's history what its engine or machine said, unless the job is final.
-- KEYS[1] job
-- ARGV    kind of the event · its message
-- Returns 1 when written, 0 when the job is final or gone
-- Repeat  writes it once more
local state = redis.call('HGET', KEYS[1], 'state')
if not state or FINAL[state] then return 0 end
redis.call('XADD', KEYS[1] .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', state, 'message', ARGV[2], 'kind', ARGV[1])
return 1
