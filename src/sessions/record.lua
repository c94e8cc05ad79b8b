-- Changes one user's sessions, all of them in one record. What it decides is what `rotation.rs` decides; tests hold the
-- two together. Nothing here revokes: that is written to the log before, by whoever calls.
--
-- KEYS[1] the record. ARGV[1] until when, by this server's clock, anything may be changed (Unix ms; empty: for ever),
-- ARGV[2] what to do, ARGV[3] the time (Unix ms; empty: this server's), ARGV[4] a session's lifetime (ms), then what each
-- of them takes.

local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
if clock > (tonumber(ARGV[1]) or clock) then
    return redis.error_reply('LATE whoever asked was told that it failed')
end
local what, now, lifetime = ARGV[2], tonumber(ARGV[3]) or clock, tonumber(ARGV[4])

local text = redis.call('GET', KEYS[1])
local record = text and cjson.decode(text) or {}
local live = {}
for _, session in ipairs(record.sessions or {}) do
    if now < session.createdAt + lifetime then
        table.insert(live, session)
    end
end

local function save()
    if #live == 0 then
        redis.call('DEL', KEYS[1])
        return
    end
    local latest = 0
    for _, session in ipairs(live) do
        latest = math.max(latest, session.createdAt)
    end
    record.sessions = live
    redis.call('SET', KEYS[1], cjson.encode(record), 'PX', string.format('%.0f', latest + lifetime - now))
end

-- Keeps the sessions that `is_kept` wants; says how many went.
local function keep(is_kept)
    local kept = {}
    for _, session in ipairs(live) do
        if is_kept(session) then
            table.insert(kept, session)
        end
    end
    local gone = #live - #kept
    live = kept
    if gone > 0 then
        save()
    end
    return gone
end

-- user, sid, user agent, address, sessions at most, not before this time, then ids of sessions that may go for it
if what == 'create' then
    record.userId = ARGV[5]
    local may_go = {}
    for index = 11, #ARGV do
        may_go[ARGV[index]] = true
    end
    local kept = {}
    for _, session in ipairs(live) do
        if not may_go[session.sid] then
            table.insert(kept, session)
        end
    end
    local too_many = #kept + 1 - tonumber(ARGV[9])
    if too_many > 0 then
        table.sort(kept, function(one, two)
            if one.lastSeen ~= two.lastSeen then
                return one.lastSeen < two.lastSeen
            end
            if one.createdAt ~= two.createdAt then
                return one.createdAt < two.createdAt
            end
            return one.sid < two.sid
        end)
        local crowded = { 'crowded' }
        for index = 1, too_many do
            table.insert(crowded, kept[index].sid)
        end
        return crowded
    end
    live = kept
    local began = math.max(now, tonumber(ARGV[10]))
    table.insert(live, {
        sid = ARGV[6],
        createdAt = began,
        lastSeen = began,
        generation = 0,
        rotatedAt = began,
        userAgent = ARGV[7],
        address = ARGV[8],
    })
    save()
    return { 'begun', string.format('%.0f', began) }
end

-- sid, generation, grace (ms), user agent, address
if what == 'refresh' then
    local generation, grace = tonumber(ARGV[6]), tonumber(ARGV[7])
    for _, session in ipairs(live) do
        if session.sid == ARGV[5] then
            local to_next = { 'renewed', string.format('%.0f', session.createdAt), string.format('%.0f', generation + 1) }
            if generation > session.generation then
                return { 'invalid' }
            end
            if generation == session.generation then
                session.generation = generation + 1
                session.rotatedAt = now
                session.lastSeen = now
                session.userAgent = ARGV[8]
                session.address = ARGV[9]
                save()
                return to_next
            end
            if generation + 1 == session.generation and now <= session.rotatedAt + grace then
                return to_next
            end
            return { 'reused', string.format('%.0f', session.createdAt) }
        end
    end
    return { 'invalid' }
end

-- sid
if what == 'end' then
    return { 'ended', tostring(keep(function(session) return session.sid ~= ARGV[5] end)) }
end

-- sessions that began until then
if what == 'end_until' then
    local til = tonumber(ARGV[5])
    return { 'ended', tostring(keep(function(session) return session.createdAt > til end)) }
end

-- nothing: only looks
return { 'record', string.format('%.0f', now), text or '' }
