-- Removes, of a job that is over or gone, a run of its shards and what lists them.
-- KEYS[1] job
-- ARGV    first shard · how many · '1' to keep their plans and which lines are bad
-- Returns 1, or 0 when the job is not over
-- Repeat  the same
local job, first = KEYS[1], tonumber(ARGV[1])
local state = redis.call('HGET', job, 'state')
if state and not FINAL[state] then return 0 end
redis.call('UNLINK', job .. TODO, job .. QUEUED, job .. HELD, job .. SEGMENTS)
for n = first, first + ARGV[2] - 1 do
  if ARGV[3] == '1' then
    redis.call('HDEL', job .. SHARD .. n, 'wake', 'op', 'token', 'takes', 'alone', 'done', 'left', 'parts')
  else
    redis.call('UNLINK', job .. SHARD .. n)
  end
end
return 1
