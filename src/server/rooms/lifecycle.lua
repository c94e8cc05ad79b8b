-- Who is there on all instances, and what has happened: decided, numbered and kept for the service, in one step.
--
-- A subject is a room or a user: `room:<name>`, `user:<id>`. It is there while any instance says so.
--
-- KEYS[1] hash: epoch, seq (changes so far), floor (the highest number of those who were forgotten), waiting_max (how many events
-- may wait), waiting (how many do) and held (how much is under the other keys). KEYS[2] hash: of each subject `<instances> <n>`. KEYS[3] sorted set:
-- `<node> <subject>`, where it is there. KEYS[4] stream: events that the service has not taken; ids are `<seq>-0`. KEYS[5] sorted
-- set: subjects that are nowhere, by when they went. KEYS[6] hash: of each instance `<connection> <ms> <waiting_max>`: it is swept
-- from then on, unless its lease has not ended; or `gone` instead: it is being swept. KEYS[7] the instances that live, by when their
-- leases end. KEYS[8] which instance sends the events.
--
-- ARGV: the node, the number of its connection, the epoch and seq that it has seen, the epoch that begins if one has to, how many
-- events may wait as far as it goes by the node (0: it does not say), 1 if dead instances are swept, 1 if the node sends events, how
-- many subjects are swept at once; then each subject that has changed on the node, and 1 or 0.
--
-- Answers with the epoch, seq, `known`, `new` (nothing was known of the node), `swept` (nothing was taken, ask again) or `late`
-- (another connection has come, nothing was taken), 1 if there is more to sweep, who sends, how many events were dropped, how
-- many came.
local meta, there, here, outbox, gone, nodes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local node, connection = ARGV[1], tonumber(ARGV[2])
local seen_epoch, seen, begins, own_max = ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local sweeps, sends, budget = ARGV[7] == '1', ARGV[8] == '1', tonumber(ARGV[9])
-- How long numbers go on from the last one when nobody is there, and of how many.
local KEPT_MS, KEPT_MAX = 600000, 65536
-- All of it goes when no instance has looked for so long. The leases of an instance, and of whoever sends.
local LIVES_MS, LEASE_MS, SENDS_MS = 86400000, 10000, 3000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number)
    return string.format('%.0f', number)
end

-- How much is under the keys that only this script changes; from the outbox `taken.lua` takes too.
local function held()
    local subjects = { redis.call('HLEN', there), redis.call('ZCARD', here), redis.call('ZCARD', gone) }
    return table.concat(subjects, ' ') .. ' ' .. redis.call('HLEN', nodes)
end

local epoch, seq, floor, waiting, was_held, waiting_max =
    unpack(redis.call('HMGET', meta, 'epoch', 'seq', 'floor', 'waiting', 'held', 'waiting_max'))
seq, floor, waiting_max = tonumber(seq) or 0, tonumber(floor) or 0, tonumber(waiting_max) or 0
local is_whole = was_held == held() and tonumber(waiting) == redis.call('XLEN', outbox)
if not epoch or not is_whole or (epoch == seen_epoch and seq < seen) then
    -- There is nothing, or it has lost a part, or what somebody has seen.
    redis.call('DEL', meta, there, here, outbox, gone, nodes)
    epoch, seq, floor, waiting_max = begins, 0, 0, 0
end
local came = 0

local function standing(subject)
    local count, n = string.match(redis.call('HGET', there, subject) or '', '^(%d+) (%d+)$')
    return tonumber(count) or 0, tonumber(n) or floor
end

local function tell(subject, is_there, n, of)
    came = came + 1
    redis.call('XADD', outbox, text(seq) .. '-0', 's', subject, 'is', is_there, 'n', text(n), 'at', text(now), 'of', of)
end

local function come(of, subject)
    if redis.call('ZADD', here, 0, of .. ' ' .. subject) == 0 then
        return
    end
    seq = seq + 1
    local count, n = standing(subject)
    if count == 0 then
        n = n + 1
        redis.call('ZREM', gone, subject)
        tell(subject, '1', n, of)
    end
    redis.call('HSET', there, subject, text(count + 1) .. ' ' .. text(n))
end

local function go(of, subject)
    if redis.call('ZREM', here, of .. ' ' .. subject) == 0 then
        return
    end
    seq = seq + 1
    local count, n = standing(subject)
    count = math.max(0, count - 1)
    if count == 0 then
        n = n + 1
        redis.call('ZADD', gone, now, subject)
        tell(subject, '0', n, of)
    end
    redis.call('HSET', there, subject, text(count) .. ' ' .. text(n))
end

-- Takes away what an instance has said; says whether that is all.
local function sweep(of, its_connection)
    local members = redis.call('ZRANGEBYLEX', here, '[' .. of .. ' ', '(' .. of .. '!', 'LIMIT', 0, budget)
    for _, member in ipairs(members) do
        go(of, string.sub(member, #of + 2))
    end
    local is_all = #members < budget
    budget = budget - #members
    if is_all then
        redis.call('HDEL', nodes, of)
    else
        -- So that it does not go on where it was, should it live after all.
        redis.call('HSET', nodes, of, its_connection .. ' gone 0')
    end
    return is_all
end

local standing_of_node, more = 'known', 0
local its_connection, state = string.match(redis.call('HGET', nodes, node) or '', '^(%d+) (%S+)')
if not its_connection then
    standing_of_node = 'new'
elseif connection < tonumber(its_connection) then
    standing_of_node = 'late'
elseif state == 'gone' then
    standing_of_node = 'swept'
    sweep(node, its_connection)
    more = 1
end
if standing_of_node == 'known' or standing_of_node == 'new' then
    -- Whoever asks lives, also where Redis has forgotten its lease.
    redis.call('HSET', nodes, node, table.concat({ text(connection), text(now + LEASE_MS), text(own_max) }, ' '))
    redis.call('ZADD', KEYS[7], text(now + LEASE_MS), node)
    waiting_max = math.max(waiting_max, own_max)
    for at = 10, #ARGV, 2 do
        if ARGV[at + 1] == '1' then
            come(node, ARGV[at])
        else
            go(node, ARGV[at])
        end
    end
end

if sweeps then
    -- As many as the instance wants for which the most may wait.
    waiting_max = own_max
    local all = redis.call('HGETALL', nodes)
    for at = 1, #all, 2 do
        local of = all[at]
        local number, due, its_max = string.match(all[at + 1], '^(%d+) (%S+) (%d+)$')
        local ends = math.max(tonumber(redis.call('ZSCORE', KEYS[7], of) or 0), tonumber(due) or 0)
        if of ~= node and (due == 'gone' or ends <= now) then
            if budget <= 0 or not sweep(of, number or '0') then
                more = 1
            end
        else
            waiting_max = math.max(waiting_max, tonumber(its_max) or 0)
        end
    end
end

local forgotten = redis.call('ZRANGEBYSCORE', gone, '-inf', text(now - KEPT_MS), 'LIMIT', 0, 1000)
local over = redis.call('ZCARD', gone) - KEPT_MAX
if #forgotten == 0 and over > 0 then
    forgotten = redis.call('ZRANGE', gone, 0, math.min(over, 1000) - 1)
end
for _, subject in ipairs(forgotten) do
    local _, n = standing(subject)
    floor = math.max(floor, n)
    redis.call('HDEL', there, subject)
    redis.call('ZREM', gone, subject)
end

local dropped = 0
if came > 0 and waiting_max > 0 then
    dropped = redis.call('XTRIM', outbox, 'MAXLEN', text(waiting_max))
end
redis.call('HSET', meta, 'epoch', epoch, 'seq', text(seq), 'floor', text(floor), 'waiting_max', text(waiting_max))
redis.call('HSET', meta, 'held', held(), 'waiting', text(redis.call('XLEN', outbox)))
local sender = redis.call('GET', KEYS[8]) or ''
if sends and (sender == '' or sender == node) then
    sender = node
    redis.call('SET', KEYS[8], node, 'PX', SENDS_MS)
elseif sender == node then
    sender = ''
    redis.call('DEL', KEYS[8])
end
if sweeps then
    for at = 1, 6 do
        redis.call('PEXPIRE', KEYS[at], LIVES_MS)
    end
end
return { epoch, text(seq), standing_of_node, text(more), sender, text(dropped), text(came) }
