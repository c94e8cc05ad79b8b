//! What holds where nothing is written: changed on purpose only.

use super::*;
use expect_test::expect;

#[test]
#[expect(clippy::too_many_lines, reason = "the table is long")]
fn the_defaults_are_those_that_were_promised() {
    expect![[r#"
        [runtime]
        shards = 0
        driver = "epoll"
        pin = true
        lookup_timeout = "10s"

        [discovery]
        nameservers = []
        interval_min = "1s"
        interval_max = "5m"
        max_shrink = 50
        allow = []

        [listener]
        address = "0.0.0.0"
        port = 3000
        backlog = 4096
        connections_max = 0
        accept_budget = 64
        hand_over = true
        kind = "plain"
        proxy_protocol = "off"

        [tls]
        handshake_timeout = "5s"
        handshakes_waiting_max = 2048
        strict_sni = false
        hsts_include_subdomains = false
        hsts_preload = false

        [admin]
        enabled = true
        address = "127.0.0.1"
        port = 3001
        hosts = []
        kind = "plain"

        [metrics]
        allow = []

        [http]
        header_timeout = "10s"
        request_timeout = "1m"
        keep_alive_timeout = "75s"
        head_bytes_max = "32KiB"
        fields_max = 100
        target_bytes_max = "8KiB"
        body_bytes_max = "1MiB"
        stream_idle_timeout = "5m"
        on_client_close = "cancel"
        interim_answers = true
        requests_per_connection_max = 0

        [trust]
        proxies = []

        [trace]
        sample_ratio = 1.0
        heed_parents = true
        errors = false
        timeout = "10s"
        compression = "none"
        service_name = "shardgate"
        attributes = ""
        queue_spans = 8192

        [deadline]
        from = "anybody"
        max = "1m"

        [shedding]
        by_deadline = true
        queue_max = "1s"

        [drain]
        notice = "5s"
        window = "10s"
        max = "30s"

        [data]
        dir = "./data"

        [accounts]
        enabled = true
        postgres_connections_max = 4
        postgres_timeout = "3s"
        password_threads = 0
        password_queue = 64
        password_memory = "19MiB"
        password_passes = 2
        login_failures_max = 5

        [log]
        level = "info"
        format = "auto"
        access = "stdout"
        buffer_bytes = "2MiB"
        flush_interval = "200ms"

        [clickhouse]
        enabled = false
        url = "http://127.0.0.1:8123"
        database = "default"
        table = "shardgate_access"
        user = "default"
        timeout = "10s"
        batch_bytes = "4MiB"
        batch_interval = "1s"
        memory_max = "64MiB"
        spill_max = "1GiB"
        keep_days = 30

        [cors]
        origins = []
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        headers = ["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"]
        exposed = ["RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"]
        max_age = "10m"
        credentials = false
        private_network = false

        [auth]
        issuer = "shardgate"
        audience = "shardgate"
        access_lifetime = "15m"
        lifetime_max = "1h"
        leeway = "5s"
        token_bytes_max = "8KiB"
        cache_entries = 16384
        revocations_max = 100000

        [redis]
        urls = []
        mode = "single"
        master = "mymaster"
        connect_timeout = "1s"
        timeout = "1s"

        [sessions]
        lifetime = "30d"
        refresh_grace = "10s"
        per_user_max = 50

        [revocation]
        max_staleness = "1m"

        [roles.admin]
        permissions = ["*"]

        [roles.analyst]
        permissions = ["hub:read"]

        [roles.service]
        permissions = ["hub:publish", "hub:read"]

        [roles.user]
        permissions = []

        [hub]
        enabled = true
        echo = false
        deflate = false
        auth_timeout = "10s"
        unauthenticated_per_address_max = 32
        ping_interval = "25s"
        dead_after = "1m"
        message_bytes_max = "64KiB"
        messages_per_s = 50
        rooms_per_socket_max = 128
        rooms_per_user_max = 1024
        sockets_per_user_max = 64
        sockets_max = 1000000
        rooms_max = 100000
        outbox_bytes_max = "1MiB"
        outboxes_bytes_max = "256MiB"
        histories_bytes_max = "256MiB"
        history_messages = 256
        history_bytes = "1MiB"
        history_age = "5m"
        dedup_window = "2m"
        presence_grace = "5s"
        events_path = "/hub-events"
        events = ["room.occupied", "room.vacated", "user.online", "user.offline"]
        events_timeout = "5s"
        events_waiting_max = 10000
        without_redis = "refuse"

        [[hub.rooms]]
        pattern = "public.*"
        roles = []
        permissions = []
        join = true
        publish = true
        presence = true
        presence_events = false
        slow_consumer = "close"

        [[hub.rooms]]
        pattern = "user.{sub}.*"
        roles = []
        permissions = []
        join = true
        publish = true
        presence = true
        presence_events = false
        slow_consumer = "close"

        [[hub.services]]
        type_name = "cart_event"
        upstream = "ingestion"
        path = "/events"
        timeout = "15s"
        waiting_max = 64
        share = "nobody"

        [[hub.services]]
        type_name = "prediction_request"
        upstream = "prediction"
        path = "/predict"
        answer = "prediction_response"
        timeout = "15s"
        waiting_max = 64
        share = "nobody"

        [upstreams.ai-engine]
        instances = ["127.0.0.1:4003"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_share_percent = 40
        outlier_statuses = "502-504"
        outlier_requests_min = 20
        outlier_window = "10s"
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [upstreams.ingestion]
        instances = ["127.0.0.1:4001"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_share_percent = 40
        outlier_statuses = "502-504"
        outlier_requests_min = 20
        outlier_window = "10s"
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [upstreams.prediction]
        instances = ["127.0.0.1:4002"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_share_percent = 40
        outlier_statuses = "502-504"
        outlier_requests_min = 20
        outlier_window = "10s"
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [[routes]]
        name = "ingestion"
        hosts = []
        path = "/api/events/*"
        methods = []
        upstream = "ingestion"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]

        [[routes]]
        name = "prediction"
        hosts = []
        path = "/api/predict/*"
        methods = []
        upstream = "prediction"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]

        [[routes]]
        name = "ai-engine"
        hosts = []
        path = "/api/ai/*"
        methods = []
        upstream = "ai-engine"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]
    "#]]
    .assert_eq(&Config::default().to_toml());
}
