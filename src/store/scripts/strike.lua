-- Takes back answers of one shard that storage has lost, while the job is finalizing: bits, lines left, parts, counts
-- and usage change together, so counts equal lines at every moment. A shard that was done waits among those given back.
-- KEYS[1] job
-- ARGV    op id · the job's expected version · shard · bitmap of the lines that the other parts have · message for the
--         job's history or '' · then segment, offset of each lost part
-- Returns the job's new version, so that whoever assembles the same records meanwhile cannot end the job; -1 when the
--         job is in another state or at another version, or the shard has none of these parts
-- Repeat  the same, by the op id
-- Errors  DAMAGED: a lost part whose counts are not recorded, or a bitmap of another length than the shard's
local FIELDS = { 'completed', 'failed', 'tokens_in', 'tokens_cached', 'tokens_out', 'tokens_reasoning' }
local FIRST_COUNT = 5
local job, op, n, rest = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local found = redis.call('HMGET', job, 'state', 'version', 'op')
if found[3] == op then return tonumber(found[2]) end
if found[1] ~= 'finalizing' or found[2] ~= ARGV[2] then return -1 end

local function count_bits(bitmap)
  local bits = 0
  for i = 1, #bitmap do
    local byte = string.byte(bitmap, i)
    while byte > 0 do
      byte = bit.band(byte, byte - 1)
      bits = bits + 1
    end
  end
  return bits
end

local shard = job .. SHARD .. n
local record = redis.call('HMGET', shard, 'lines', 'left', 'done', 'parts')
local lines, done = tonumber(record[1]), record[3] or ''
local lost = {}
for i = 6, #ARGV, 2 do lost[ARGV[i] .. ' ' .. ARGV[i + 1]] = true end

-- Sums what is to go, and returns what stays; nil when the record does not say how much a part counted.
local function without(is_lost)
  local sums, kept, gone = { 0, 0, 0, 0, 0, 0 }, '', 0
  for part in string.gmatch(record[4] or '', '[^;]+') do
    local words = {}
    for word in string.gmatch(part, '%S+') do words[#words + 1] = word end
    if is_lost(words[1] .. ' ' .. words[2]) then
      if not words[FIRST_COUNT] then return nil end
      gone = gone + 1
      for i = 1, #sums do sums[i] = sums[i] + words[FIRST_COUNT + i - 1] end
    else
      kept = kept .. ';' .. part
    end
  end
  return { sums = sums, kept = kept, gone = gone }
end

local struck = without(function(place) return lost[place] end)
if not struck then return redis.error_reply('DAMAGED ' .. shard .. ' parts') end
if struck.gone == 0 then return -1 end
if #rest ~= #done then return redis.error_reply('DAMAGED ' .. shard .. ' done') end
-- Of two parts that have one line only one counts it: then nobody knows which lines stay, and the whole shard goes.
if count_bits(rest) ~= count_bits(done) - struck.sums[1] - struck.sums[2] then
  rest = string.rep('\0', #done)
  struck = without(function() return true end)
  if not struck then return redis.error_reply('DAMAGED ' .. shard .. ' parts') end
end

redis.call('HSET', shard, 'done', rest, 'left', lines - count_bits(rest), 'parts', struck.kept)
redis.call('HDEL', shard, 'token', 'takes')
for i, field in ipairs(FIELDS) do
  if struck.sums[i] > 0 then redis.call('HINCRBY', job, field, -struck.sums[i]) end
end
if tonumber(record[2] or lines) == 0 then
  redis.call('HINCRBY', job, 'done_shards', -1)
  redis.call('LPUSH', job .. TODO, n)
end
if ARGV[5] ~= '' then
  redis.call('XADD', job .. EVENTS, 'MAXLEN', '~', 1000, '*', 'state', found[1], 'message', ARGV[5])
end
redis.call('HSET', job, 'op', op)
return redis.call('HINCRBY', job, 'version', 1)
