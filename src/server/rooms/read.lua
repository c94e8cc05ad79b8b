-- Says how a room stands, and what was said from a number on. A room that has lost what the asker has seen begins anew.
--
-- After what `stands.lua` takes (where no epoch may begin, it is empty): KEYS[3] who is there; ARGV[5] the number from which
-- messages are wanted (empty: the last one), how many at most (0: none), how many ms the room lives on at least, 1 if it is
-- wanted who is there, how many bytes of messages at most (one message at least); how to publish, the channel, the room.
-- Answers with the epoch, the number, its digest, 1 if it is not known who is there, how many messages, each with its number and
-- the digests before and after it, and then who is there: `<node> <user>`, `<number> <sockets>`.
local from, most, lives = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local is_untold = '0'

-- Whether what the asker has seen is not what comes before the next message here.
local function is_other()
    if epoch ~= seen_epoch or seq <= seen then
        return false
    end
    local next = string.format('%.0f-0', seen + 1)
    local entry = redis.call('XRANGE', KEYS[2], next, next)[1]
    return entry and entry[2][6] ~= seen_digest
end

if begins ~= '' then
    if not epoch or has_lost() or is_other() or is_another() then
        begin()
        redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', '0', 'bytes', '0', 'digest', digest)
    end
    redis.call('PEXPIRE', KEYS[1], lives)
    if redis.call('PEXPIRE', KEYS[3], lives) == 0 then
        -- Whoever asks is in the room: nobody has told yet, or it was forgotten. All who have told are asked to tell again.
        is_untold = '1'
        redis.call(ARGV[10], ARGV[11], '? ' .. ARGV[12])
    end
end
if seen_epoch ~= '0' and seen_epoch ~= epoch then
    from = '1'
end
local entries, size, next = {}, 0, from ~= '' and from .. '-0'
while next and #entries < most do
    local page = redis.call('XRANGE', KEYS[2], next, '+', 'COUNT', math.min(64, most - #entries))
    next = #page == 64 and string.format('%.0f-0', string.match(page[64][1], '^%d+') + 1)
    for _, entry in ipairs(page) do
        size = size + #entry[2][2]
        if size > tonumber(ARGV[9]) and #entries > 0 then
            next = nil
            break
        end
        table.insert(entries, entry)
    end
end
if from == '' and most > 0 then
    entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
end
local answer = { epoch or '', string.format('%.0f', seq), digest, is_untold, tostring(#entries) }
for _, entry in ipairs(entries) do
    local kept = entry[2]
    for _, part in ipairs({ string.match(entry[1], '^%d+'), kept[6] or '', kept[8] or '', kept[2] or '' }) do
        table.insert(answer, part)
    end
end
if ARGV[8] == '1' then
    -- So many fields no room has; a room with more is not read whole.
    local fields_max = 131072
    local is_much = redis.call('HLEN', KEYS[3]) > fields_max
    local fields = is_much and redis.call('HSCAN', KEYS[3], 0, 'COUNT', fields_max)[2] or redis.call('HGETALL', KEYS[3])
    for _, part in ipairs(fields) do
        table.insert(answer, part)
    end
end
return answer
