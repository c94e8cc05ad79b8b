-- What the scripts of a room begin with: how it stands, and whether its numbers still count.
--
-- KEYS[1] meta, KEYS[2] log. ARGV: the epoch, number and digest that the asker has seen, the epoch that begins if one has to.
local seen_epoch, seen, seen_digest, begins = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

-- A digest is of a message and all before it in its epoch.
local function digest_of(before, salt)
    return string.sub(redis.sha1hex(before .. salt), 1, 16)
end

local stands = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'bytes', 'digest', 'server', 'run')
local epoch, seq, bytes, digest = stands[1], tonumber(stands[2]) or 0, tonumber(stands[3]) or 0, stands[4] or ''

-- Which server this is: its history of replication has a name, which changes when a replica takes over. A server that may not
-- be asked is always the same.
local function asked(section, what)
    local told = redis.pcall('INFO', section)
    return type(told) == 'string' and string.match(told, what) or ''
end
local replication = redis.pcall('INFO', 'replication')
replication = type(replication) == 'string' and replication or ''
local server = string.match(replication, 'master_replid:(%w+)') or ''

-- Whether another server has the room now that may lack its last messages: a replica that took over, or one that was started
-- from a snapshot. One that was started from its append-only file is believed, and so is one whose name alone has changed,
-- with its first replica or long after its last.
local function is_another()
    if server == stands[5] then
        return false
    end
    local run = asked('server', 'run_id:(%w+)')
    local has_taken_over = string.match(string.match(replication, 'master_replid2:(%w+)') or '', '[^0]') ~= nil
    local is_believed = run == stands[6] or asked('persistence', 'aof_enabled:(%d)') == '1'
    redis.call('HSET', KEYS[1], 'server', server, 'run', run)
    return has_taken_over or not is_believed
end

-- Whether the asker has seen what is not here.
local function has_lost()
    return epoch == seen_epoch and (seq < seen or (seq == seen and digest ~= seen_digest))
end

-- The old numbers count no more.
local function begin()
    redis.call('HSET', KEYS[1], 'server', server, 'run', asked('server', 'run_id:(%w+)'))
    redis.call('DEL', KEYS[2])
    epoch, seq, bytes, digest = begins, 0, 0, digest_of('', begins)
end
