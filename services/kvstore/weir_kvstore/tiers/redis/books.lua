-- The books of a store that hosts share: who is charged what, and who goes next. One call is one atomic step.
--
-- KEYS  books  hash  member -> "size depth parent tenant" of a visible block
--                    "put:<token>" -> "size lapses_at tenant" of one that is being put
--       tally  hash  "bytes", "blocks", "tenant:<tenant>" -> bytes; "floor": the value of the last that lfu let go
--       order  zset  members, the next to go first
--       The others follow from the prefix and lie in the same slot: "block:<member>", "staged:<token>", "order:<tenant>".
-- ARGV  prefix, policy ("lru", "lfu", "fifo"), capacity in bytes, verb, and what the verb takes.
-- Answers {what became of it, bytes, blocks, evicted, expired, corrupt}.
--
-- A member's place in the order is a whole number, seconds of its last use or a count of uses, less a little for its
-- depth in its chain: of blocks that were used together the chain's end goes first. Using a block is using its beginning.
--
-- Nothing is charged twice, and nothing stays charged for ever: values that Redis itself let go are forgotten by `settle`
-- or as victims, and values without books are charged by `settle`. Books that Redis has let go in part are begun anew.

local prefix, policy, capacity, verb = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local books, tally, order = KEYS[1], KEYS[2], KEYS[3]
local now = tonumber(redis.call('TIME')[1])
local evicted, expired, corrupt = 0, 0, 0

-- So that one call holds up the others for a few milliseconds at most; the next call goes on.
local MAX_VICTIMS, MAX_ANCESTORS, MAX_OFFENDERS, MAX_ADOPTED = 1024, 1024, 8, 1024
local MAX_TENANTS = 512 -- of more nobody looks who is over a share: the order decides among all
-- A chain has at most 65536 blocks, so depth takes less than one from a place.
local DEPTHS = 131072
local HEADER = 80 -- layout.py: the fixed part

local known = redis.call('EXISTS', books)
if known ~= redis.call('EXISTS', tally) or known < redis.call('EXISTS', order) then
  redis.call('DEL', books, tally, order)
end

local function value_of(member) return prefix .. 'block:' .. member end
local function order_of(tenant) return prefix .. 'order:' .. tenant end

local function add(field, amount)
  if amount ~= 0 and redis.call('HINCRBY', tally, field, amount) <= 0 then redis.call('HDEL', tally, field) end
end

local function counted(field) return tonumber(redis.call('HGET', tally, field) or 0) end

local function charge(tenant, bytes, blocks)
  add('bytes', bytes)
  add('tenant:' .. tenant, bytes)
  add('blocks', blocks)
end

local function entry_of(member)
  local entry = redis.call('HGET', books, member)
  if not entry then return nil end
  local size, depth, parent, tenant = string.match(entry, '^(%d+) (%d+) (%S+) (.*)$')
  return {size = tonumber(size), depth = tonumber(depth), parent = parent, tenant = tenant}
end

local function sibling(member, hash) return string.sub(member, 1, 33) .. hash end

local function place(member, entry, base)
  local score = base - entry.depth / DEPTHS
  redis.call('ZADD', order, score, member)
  redis.call('ZADD', order_of(entry.tenant), score, member)
end

-- The place of what has just come.
local function newest() return policy == 'lfu' and counted('floor') + 1 or now end

-- The member has at least this place, and so has all before it.
local function raise(member, base)
  for _ = 1, MAX_ANCESTORS do
    local entry = entry_of(member)
    local score = redis.call('ZSCORE', order, member)
    if not entry or (score and tonumber(score) >= base - entry.depth / DEPTHS) then return end
    place(member, entry, base)
    member = sibling(member, entry.parent)
  end
end

local function enter(member, size, parent, tenant)
  local before = parent ~= '-' and entry_of(sibling(member, parent))
  local entry = {size = size, depth = before and math.min(before.depth + 1, DEPTHS - 1) or 0, parent = parent, tenant = tenant}
  local base = newest()
  redis.call('HSET', books, member, table.concat({size, entry.depth, parent, tenant}, ' '))
  place(member, entry, base)
  if before and policy ~= 'fifo' then raise(sibling(member, parent), base) end
end

-- For a member that an order has lost: as if it were used now, or where it stands in the other order.
local function replace_lost(member)
  local entry = entry_of(member)
  local score = redis.call('ZSCORE', order, member)
  if score and redis.call('ZSCORE', order_of(entry.tenant), member) then return end
  place(member, entry, score and math.ceil(tonumber(score)) or newest())
end

-- Whether there was a value.
local function forget(member)
  local entry = entry_of(member)
  local there = redis.call('UNLINK', value_of(member)) == 1
  redis.call('ZREM', order, member)
  if entry then
    redis.call('HDEL', books, member)
    redis.call('ZREM', order_of(entry.tenant), member)
    charge(entry.tenant, -entry.size, -1)
  end
  return there
end

-- A member whose value Redis has let go is charged no more.
local function forget_vanished(member)
  if redis.call('HEXISTS', books, member) == 1 then
    forget(member)
    expired = expired + 1
  end
end

-- Lets members of this order go until no more than `limit` bytes are in `field`; whether that came true.
local function shrink(from, field, limit)
  for _ = 1, MAX_VICTIMS do
    if counted(field) <= limit then return true end
    local worst = redis.call('ZRANGE', from, 0, 0, 'WITHSCORES')
    if #worst == 0 then return false end
    redis.call('ZREM', from, worst[1])
    if forget(worst[1]) then evicted = evicted + 1 else expired = expired + 1 end
    if policy == 'lfu' then redis.call('HSET', tally, 'floor', math.ceil(tonumber(worst[2]))) end
  end
  return counted(field) <= limit
end

-- The tenant who is furthest over its share, by weight, once `size` bytes are this tenant's; and what it would have left.
local function offender(tenant, size, shares)
  if redis.call('HLEN', tally) > MAX_TENANTS then return nil end
  local used, total = {[tenant] = size}, 0
  local fields = redis.call('HGETALL', tally)
  for i = 1, #fields, 2 do
    local who = string.match(fields[i], '^tenant:(.*)$')
    if who then used[who] = (used[who] or 0) + tonumber(fields[i + 1]) end
  end
  local function weight(who) return shares.named[who] or shares.others end
  for who in pairs(used) do total = total + weight(who) end
  local worst, furthest, left = nil, 0, 0
  for who, bytes in pairs(used) do
    local share = capacity * weight(who) / total
    if bytes - share > furthest then
      worst, furthest, left = who, bytes - share, who == tenant and share - size or share
    end
  end
  return worst, left
end

-- Room for so many bytes of this tenant's: whoever is over its share gives way first.
local function make_room(tenant, size, shares)
  for _ = 1, MAX_OFFENDERS do
    local lacking = counted('bytes') + size - capacity
    if lacking <= 0 then return true end
    local who, left = offender(tenant, size, shares)
    if not who then break end
    local field = 'tenant:' .. who
    if not shrink(order_of(who), field, math.max(counted(field) - lacking, left)) then break end
  end
  return shrink(order, 'bytes', capacity - size)
end

local function lapse(field, reservation)
  local size, lapses_at, tenant = string.match(reservation, '^(%d+) (%d+) (.*)$')
  if now <= tonumber(lapses_at) then return end
  redis.call('HDEL', books, field)
  charge(tenant, -tonumber(size), 0)
end

local adopted = 0
local adopt
-- A value that is in no books: charged by what it says of itself, or gone. Its parent first, for depth comes from there.
function adopt(member)
  if adopted >= MAX_ADOPTED then return end
  adopted = adopted + 1
  local header = redis.pcall('GETRANGE', value_of(member), 0, HEADER + 127)
  local length = redis.pcall('STRLEN', value_of(member)) -- a table, the error, when it is no string
  if type(header) == 'string' and #header >= HEADER and string.sub(header, 1, 4) == 'WKV1' then
    local parent_length, tenant_length = struct.unpack('<I2I2', string.sub(header, 5, 8))
    local size = struct.unpack('<I8', string.sub(header, 57, 64))
    if tenant_length <= 128 and length == HEADER + tenant_length + 8 + size then
      local parent = parent_length == 0 and '-' or string.gsub(string.sub(header, 41, 56), '.', function(byte)
        return string.format('%02x', string.byte(byte))
      end)
      local tenant = string.sub(header, HEADER + 1, HEADER + tenant_length)
      local before = sibling(member, parent)
      if not entry_of(before) and redis.call('EXISTS', value_of(before)) == 1 then adopt(before) end
      if entry_of(member) then return end -- a chain that bites its tail
      charge(tenant, size, 1)
      return enter(member, size, parent, tenant)
    end
  end
  redis.call('UNLINK', value_of(member))
  corrupt = corrupt + 1
end

local verbs = {}

-- They were used just now.
function verbs.touch(...)
  for _, member in ipairs({...}) do
    local score = policy == 'lfu' and redis.call('ZSCORE', order, member)
    raise(member, score and math.ceil(tonumber(score)) + 1 or now)
  end
  return #{...}
end

-- Charges a block before a byte of it is sent, letting others go if need be.
function verbs.reserve(token, member, size, tenant, quota, seconds, shares)
  size, quota = tonumber(size), tonumber(quota)
  if redis.call('EXISTS', value_of(member)) == 1 then
    if policy ~= 'fifo' then verbs.touch(member) end
    return 'present'
  end
  forget_vanished(member)
  if size > capacity or (quota >= 0 and size > quota) then return 'refused' end
  if quota >= 0 and not shrink(order_of(tenant), 'tenant:' .. tenant, quota - size) then return 'refused' end
  if not make_room(tenant, size, cjson.decode(shares)) then return 'refused' end
  redis.call('HSET', books, 'put:' .. token, table.concat({size, now + tonumber(seconds), tenant}, ' '))
  charge(tenant, size, 0)
  return 'reserved'
end

-- Makes what was staged visible: all of it, with its charge.
function verbs.commit(token, member, parent, value_bytes, ttl_ms)
  local staged, field = prefix .. 'staged:' .. token, 'put:' .. token
  local reservation = redis.call('HGET', books, field)
  if not reservation then
    redis.call('UNLINK', staged)
    return 'lost'
  end
  local size, _, tenant = string.match(reservation, '^(%d+) (%d+) (.*)$')
  redis.call('HDEL', books, field)
  local present = redis.call('EXISTS', value_of(member)) == 1
  if present or redis.call('STRLEN', staged) ~= tonumber(value_bytes) then
    redis.call('UNLINK', staged)
    charge(tenant, -tonumber(size), 0)
    return present and 'present' or 'lost'
  end
  forget_vanished(member)
  redis.call('RENAME', staged, value_of(member))
  if tonumber(ttl_ms) > 0 then redis.call('PEXPIRE', value_of(member), ttl_ms) else redis.call('PERSIST', value_of(member)) end
  charge(tenant, 0, 1)
  enter(member, tonumber(size), parent, tenant)
  return 'stored'
end

-- How many of the namespace's hashes, all in one string, are here one after another from the first on.
function verbs.match(namespace, hashes)
  local count = #hashes / 32
  for i = 0, count - 1 do
    if redis.call('EXISTS', value_of(namespace .. ':' .. string.sub(hashes, i * 32 + 1, i * 32 + 32))) == 0 then return i end
  end
  return count
end

function verbs.remove(...)
  local removed = 0
  for _, member in ipairs({...}) do
    if forget(member) then removed = removed + 1 end
  end
  return removed
end

-- Makes the books agree with what is there, for these members and puts.
function verbs.settle(...)
  for _, member in ipairs({...}) do
    local entry = redis.call('HGET', books, member)
    if string.sub(member, 1, 4) == 'put:' then
      if entry then lapse(member, entry) end
    elseif redis.call('EXISTS', value_of(member)) == 0 then
      forget_vanished(member)
    elseif not entry then
      adopt(member)
    else
      replace_lost(member)
    end
  end
  shrink(order, 'bytes', capacity)
  return 0
end

local answer = verbs[verb](unpack(ARGV, 5))
return {answer, counted('bytes'), counted('blocks'), evicted, expired, corrupt}
