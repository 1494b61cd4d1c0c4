-- $1: id of the node; $2: address of the GPU machine on wopr-dev, which the watchdog polls.
INSERT INTO gpu_nodes (id, host, region, size, status, provision_stage)
VALUES ($1, $2, 'local', 'rtx-3070', 'active', 'done')
ON CONFLICT (id) DO UPDATE SET
    host = excluded.host,
    region = excluded.region,
    size = excluded.size,
    status = excluded.status,
    provision_stage = excluded.provision_stage,
    -- Until the first poll nothing is known.
    service_health = NULL,
    last_health_at = NULL,
    last_error = NULL,
    updated_at = extract(epoch FROM now())::bigint
