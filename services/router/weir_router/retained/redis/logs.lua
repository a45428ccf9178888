-- Streams that routers share: who runs each, and the log of what it has said. One call is one atomic step.
--
-- KEYS  one, for its slot; the others follow from the prefix and lie in the same one:
--       "stream:<name>"   hash  owner, epoch: who runs it, and the how manieth that is
--                               request, prompt: what was asked; key: the key that began it, if one did
--                               state: "running", "done", "failed", or "retry": failed, and may be tried again;
--                               cancelled; reader: how often it was taken over by a reader
--       "log:<name>"      list  its entries, in order
--       "lease:<name>"    until it lapses, the owner lives
--       "reading:<name>"  until it lapses, somebody reads it at a router that does not run it
--       "key:<key>"       hash  name, id, fingerprint: the stream that an idempotency key began
-- ARGV  prefix, verb, name, and what the verb takes.
--
-- Whoever runs a stream says who it is and in which epoch. One whose stream was taken over meanwhile is told so ("fenced"), and
-- writes nothing.

local prefix, verb, name = ARGV[1], ARGV[2], ARGV[3]
local stream, log = prefix .. 'stream:' .. name, prefix .. 'log:' .. name
local lease, reading = prefix .. 'lease:' .. name, prefix .. 'reading:' .. name

local function keep(ms)
  redis.call('PEXPIRE', stream, ms)
  redis.call('PEXPIRE', log, ms)
  local key = redis.call('HGET', stream, 'key')
  if key and redis.call('HGET', key, 'name') == name then redis.call('PEXPIRE', key, ms) end
end

local function free_key()
  local key = redis.call('HGET', stream, 'key')
  if key and redis.call('HGET', key, 'name') == name then return redis.call('DEL', key) end
  return 0
end

-- begin: owner, lease ms, kept ms, request, its id, key or "", fingerprint
-- {"begun"}, {"named"}: a stream has the name, or {"keyed", name, id, fingerprint}: one has the key
if verb == 'begin' then
  local owner, lease_ms, kept_ms, request, id, key, fingerprint = unpack(ARGV, 4)
  if key ~= '' then
    key = prefix .. 'key:' .. key
    local held = redis.call('HGET', key, 'name')
    -- One whose stream was let go before its time is free.
    if held and redis.call('HGET', prefix .. 'stream:' .. held, 'key') == key then
      local began, print = unpack(redis.call('HMGET', key, 'id', 'fingerprint'))
      return {'keyed', held, began, print}
    end
  end
  local state = redis.call('HGET', stream, 'state')
  if state == 'running' or state == 'done' then return {'named'} end
  free_key()
  redis.call('DEL', stream, log, reading)
  redis.call('HSET', stream, 'owner', owner, 'epoch', 1, 'request', request, 'state', 'running', 'reader', 0)
  redis.call('SET', lease, owner, 'PX', lease_ms)
  if key ~= '' then
    redis.call('HSET', key, 'name', name, 'id', id, 'fingerprint', fingerprint)
    redis.call('HSET', stream, 'key', key)
  end
  keep(kept_ms)
  return {'begun'}
end

local function fenced(owner, epoch)
  local now_owner, now_epoch = unpack(redis.call('HMGET', stream, 'owner', 'epoch'))
  return now_owner ~= owner or now_epoch ~= epoch
end

-- append: owner, epoch, lease ms, kept ms, state or "", prompt or "", position of the first entry, entries
-- {"gone"}, {"fenced"}, or {"kept", reader, cancelled, whether somebody reads it elsewhere}
if verb == 'append' then
  local owner, epoch, lease_ms, kept_ms, state, prompt, position = unpack(ARGV, 4, 10)
  if redis.call('EXISTS', stream) == 0 then return {'gone'} end
  if fenced(owner, epoch) then return {'fenced'} end
  -- An answer may have been lost: what is here already is not written again.
  local length = redis.call('LLEN', log)
  if tonumber(position) > length then return {'gone'} end
  for i = 11 + length - tonumber(position), #ARGV do redis.call('RPUSH', log, ARGV[i]) end
  if prompt ~= '' then redis.call('HSET', stream, 'prompt', prompt) end
  if state == '' then
    redis.call('SET', lease, owner, 'PX', lease_ms)
  else
    redis.call('HSET', stream, 'state', state)
    redis.call('DEL', lease)
    if state == 'retry' then free_key() end
  end
  keep(kept_ms)
  local reader, cancelled = unpack(redis.call('HMGET', stream, 'reader', 'cancelled'))
  return {'kept', tonumber(reader), cancelled and 1 or 0, redis.call('EXISTS', reading)}
end

-- read: position, count, how long the reader counts in ms (0: it does not)
-- {"gone"}, or {state, whether its owner lives, reader, entries}
if verb == 'read' then
  local state, reader = unpack(redis.call('HMGET', stream, 'state', 'reader'))
  if not state then return {'gone'} end
  local position, count, reading_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
  if reading_ms > 0 then redis.call('SET', reading, 1, 'PX', reading_ms) end
  local entries = redis.call('LRANGE', log, position, position + count - 1)
  return {state, redis.call('EXISTS', lease), tonumber(reader), entries}
end

-- attend: {} → how often it has been taken over, this time included; 0: it is gone
if verb == 'attend' then
  if redis.call('EXISTS', stream) == 0 then return 0 end
  return redis.call('HINCRBY', stream, 'reader', 1)
end

-- take_over: owner, lease ms → {epoch, request, prompt, cancelled}; epoch 0: it is over, gone, or its owner lives
if verb == 'take_over' then
  if redis.call('HGET', stream, 'state') ~= 'running' or redis.call('EXISTS', lease) == 1 then return {0} end
  local epoch = redis.call('HINCRBY', stream, 'epoch', 1)
  redis.call('HSET', stream, 'owner', ARGV[4])
  redis.call('SET', lease, ARGV[4], 'PX', ARGV[5])
  local request, prompt, cancelled = unpack(redis.call('HMGET', stream, 'request', 'prompt', 'cancelled'))
  return {epoch, request, prompt or '', cancelled and 1 or 0}
end

-- cancel: whether there is such a stream
if verb == 'cancel' then
  if redis.call('EXISTS', stream) == 0 then return 0 end
  redis.call('HSET', stream, 'cancelled', 1)
  return 1
end

-- fail, release, forget: owner, epoch
if fenced(ARGV[4], ARGV[5]) then return 0 end
if verb == 'fail' then
  redis.call('HSET', stream, 'state', 'retry')
  return free_key()
end
if verb == 'release' then return redis.call('DEL', lease) end
if verb == 'forget' then
  free_key()
  return redis.call('DEL', stream, log, lease, reading)
end
return redis.error_reply('unknown verb ' .. verb)
