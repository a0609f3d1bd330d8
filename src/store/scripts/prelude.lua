-- Stands before every script, after the constants that scripts.ts renders: SHARD, TODO, QUEUED, HELD and others
-- end the keys of what belongs to a record; FINAL and SEALED are sets of states.

-- Redis time in ms since 1970; it stands still while a script runs.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Lets `ahead` shards wait, if the job is in progress and not paused: first those given back, then never opened ones.
-- Of a job that a remote service runs none ever waits.
-- Returns all that wait as a flat list of shard and wake, oldest first, so that each caller can mend a lost add.
local function open(job, ahead)
  local record = redis.call('HMGET', job, 'state', 'next', 'shards', 'paused_at', 'remote')
  local cursor, shards = tonumber(record[2] or 0), tonumber(record[3] or 0)
  local isOpen = record[1] == 'in_progress' and not record[4] and not record[5]
  local room = isOpen and ahead - redis.call('ZCARD', job .. QUEUED) or 0
  for _ = 1, room do
    local n = redis.call('LPOP', job .. TODO)
    if not n then
      if cursor >= shards then break end
      n = cursor
      cursor = cursor + 1
      redis.call('HSET', job, 'next', cursor)
    end
    redis.call('HINCRBY', job .. SHARD .. n, 'wake', 1)
    redis.call('ZADD', job .. QUEUED, now(), n)
  end
  local waiting = {}
  for _, n in ipairs(redis.call('ZRANGE', job .. QUEUED, 0, -1)) do
    waiting[#waiting + 1] = n
    waiting[#waiting + 1] = redis.call('HGET', job .. SHARD .. n, 'wake')
  end
  return waiting
end

-- Puts a host among those that have a webhook to be sent, at its earliest one's time but not before `from`, or takes
-- it out. A host whose earliest one was not tried yet is among the fresh ones, too.
local function place_host(base, host, from)
  local first = redis.call('ZRANGE', base .. HOST .. host, 0, 0, 'WITHSCORES')
  local fresh = first[1] and redis.call('HEXISTS', base .. DELIVERY .. first[1], 'attempts') == 0
  local at = first[2] and math.max(first[2], from)
  if first[1] then redis.call('ZADD', base .. HOSTS, at, host) else redis.call('ZREM', base .. HOSTS, host) end
  if fresh then redis.call('ZADD', base .. FRESH, at, host) else redis.call('ZREM', base .. FRESH, host) end
end
