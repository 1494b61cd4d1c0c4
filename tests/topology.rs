//! Two machines up: healthy, seeded, reachable, isolated, and gone.

use anyhow::{Context as _, Result, bail};
use pretty_assertions::assert_eq;
use reqwest::StatusCode;
use reqwest::header::HOST;
use rstest::rstest;
use serde_json::{Value, json};
use sqlx::Row as _;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::{ContainerSpec, Engine, HostPort, LABEL_TOPOLOGY, PortMap, Privilege};
use wopr_harness::fault::Outcome;
use wopr_harness::machine::Role;
use wopr_harness::profile::Profile;
use wopr_harness::seed::NodeId;
use wopr_harness::settings::StackSettings;
use wopr_harness::{GPU, Service, Topology, VPS};

#[tokio::test]
async fn every_service_answers_a_real_request_on_its_published_port() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let http = reqwest::Client::new();

    for service in Service::ALL {
        assert!(topology.health(service).await.is_ok(), "{service}");
    }
    let chat =
        json!({ "messages": [{ "role": "user", "content": "shall we play a game?" }], "max_tokens": 16 });
    let chat: Value = http
        .post(topology.url(8080, "/v1/chat/completions"))
        .json(&chat)
        .send()
        .await?
        .json()
        .await?;
    assert!(chat["usage"]["completion_tokens"].as_u64() > Some(0), "{chat}");

    let embedding = json!({ "input": "tic-tac-toe" });
    let embedding: Value = http
        .post(topology.url(8083, "/v1/embeddings"))
        .json(&embedding)
        .send()
        .await?
        .json()
        .await?;
    assert_eq!(
        embedding["data"][0]["embedding"].as_array().map(Vec::len),
        Some(64),
        "{embedding}"
    );

    let speech = json!({ "input": "Would you like to play a game?" });
    let speech = http
        .post(topology.url(8081, "/v1/audio/speech"))
        .json(&speech)
        .send()
        .await?;
    let wav = speech.error_for_status()?.bytes().await?;
    assert_eq!((&wav[..4], &wav[8..12]), (&b"RIFF"[..], &b"WAVE"[..]));

    let part = reqwest::multipart::Part::stream(wav)
        .file_name("speech.wav")
        .mime_str("audio/wav")?;
    let form = reqwest::multipart::Form::new().part("file", part);
    let text = http
        .post(topology.url(8082, "/v1/audio/transcriptions"))
        .multipart(form)
        .send()
        .await?;
    let text: Value = text.error_for_status()?.json().await?;
    assert!(text["text"].is_string(), "{text}");
    topology.down().await?;
    Ok(())
}

#[rstest]
#[case::llama_cpp(8080)]
#[case::chatterbox(8081)]
#[case::whisper(8082)]
#[case::qwen_embeddings(8083)]
#[tokio::test]
async fn platform_api_reaches_the_gpu_services_by_address_and_by_name(#[case] port: u16) -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let gpu = topology.address(&GPU);

    let named = topology.address_for(Service::PlatformApi, "wopr-gpu").await?;
    assert_eq!(named, Some(gpu));
    let url = format!("http://{gpu}:{port}/health");
    let asked = topology.ask_from(Service::PlatformApi, &url).await?;
    assert_eq!(asked.outcome, Outcome::Answered, "{asked}");
    Ok(())
}

#[tokio::test]
async fn the_machines_share_wopr_dev_and_nothing_else() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let (from_vps, from_gpu) = (Service::PlatformApi, Service::LlamaCpp);
    let outcome =
        async |service: Service, url: String| anyhow::Ok(topology.ask_from(service, &url).await?.outcome);

    // By its container's name, a service is known on its own machine alone.
    let database = topology.address_for(from_vps, "postgres").await?;
    let database = database.context("platform-api does not know its database")?;
    let at = format!("postgres://{database}:5432");
    assert_eq!(outcome(from_vps, at).await?, Outcome::Answered);
    assert_eq!(topology.address_for(from_gpu, "postgres").await?, None);
    // The database is not published on the machine.
    let published = format!("postgres://{}:5432", topology.address(&VPS));
    assert_ne!(outcome(from_gpu, published).await?, Outcome::Answered);
    // The GPU machine's inner network leads nowhere from here; its published port does.
    let engine = topology.machine(&GPU).engine();
    let inner = engine.address(&Service::LlamaCpp.container()).await?;
    let at = |host| format!("http://{host}:8080/health");
    assert_ne!(outcome(from_vps, at(inner)).await?, Outcome::Answered, "{inner}");
    assert_eq!(
        outcome(from_vps, at(topology.address(&GPU))).await?,
        Outcome::Answered
    );
    // No name beyond the topology exists, so that no test sends a packet outside.
    assert_eq!(topology.address_for(from_vps, "example.com").await?, None);
    Ok(())
}

#[tokio::test]
async fn seeding_twice_gives_one_row_with_the_machines_own_address() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let node = topology.seed_gpu_node().await?;
    assert_eq!(topology.seed_gpu_node().await?, node);

    let mut database = topology.database().await?;
    let rows = sqlx::query("SELECT id, host, status, service_health FROM gpu_nodes")
        .fetch_all(&mut database)
        .await?;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<String, _>("id"), "local-gpu-node-001");
    assert_eq!(
        rows[0].get::<String, _>("host"),
        topology.address(&GPU).to_string()
    );
    assert_eq!(rows[0].get::<String, _>("status"), "active");
    assert_eq!(rows[0].get::<Option<String>, _>("service_health"), None);
    Ok(())
}

#[tokio::test]
async fn a_node_id_that_is_sql_is_refused_and_would_be_harmless() -> Result<()> {
    const SQL: &str = "x'); drop table gpu_nodes;--";
    assert!(SQL.parse::<NodeId>().is_err());

    let topology = Topology::builder().boot().await?;
    let mut database = topology.database().await?;
    sqlx::query(wopr_harness::seed::STATEMENT)
        .bind(SQL)
        .bind("10.0.0.1")
        .execute(&mut database)
        .await?;
    let row = sqlx::query("SELECT id FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(row.get::<String, _>("id"), SQL);
    Ok(())
}

#[tokio::test]
async fn data_survives_down_and_up_but_not_down_with_volumes() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let (engine, id) = (topology.engine().clone(), topology.id().to_owned());
    topology.seed_gpu_node().await?;

    let topology = topology.rest().await?.boot().await?;
    let mut database = topology.database().await?;
    let count = sqlx::query("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(count.get::<i64, _>(0), 1, "the row is there after down and up");
    topology.down().await?;
    assert_eq!(
        engine
            .volumes_with_label(&format!("{LABEL_TOPOLOGY}={id}"))
            .await?,
        Vec::<String>::new()
    );
    Ok(())
}

#[rstest]
#[case::vps(VPS)]
#[case::gpu(GPU)]
#[tokio::test]
async fn a_machine_that_was_killed_boots_again_on_its_volume(
    #[case] name: wopr_harness::machine::MachineName,
) -> Result<()> {
    let topology = Topology::builder().boot().await?;
    topology.seed_gpu_node().await?;
    let machine = topology.machine(&name);
    let address = machine.address();

    machine.kill().await?;
    assert!(!machine.state().await?.context("the container is gone")?.running);
    machine.start().await?;
    topology.until_healthy(&Service::ALL).await?;

    assert_eq!(topology.engine().address(machine.container()).await?, address);
    let mut database = topology.database().await?;
    let count = sqlx::query("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(count.get::<i64, _>(0), 1, "the row is there after the kill");
    Ok(())
}

#[tokio::test]
async fn two_topologies_live_side_by_side() -> Result<()> {
    let (one, other) = tokio::join!(Topology::builder().boot(), Topology::builder().boot());
    let (one, other) = (one?, other?);
    assert_ne!(one.address(&GPU), other.address(&GPU));
    assert_ne!(one.port(3100), other.port(3100));

    one.seed_gpu_node().await?;
    let mut database = other.database().await?;
    let count = sqlx::query("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(
        count.get::<i64, _>(0),
        0,
        "a row of one topology is not seen in the other"
    );
    one.down().await?;
    assert!(other.health(Service::PlatformApi).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn caddy_leads_each_host_where_it_belongs() -> Result<()> {
    let topology = Topology::builder().boot().await?;
    let node = topology.seed_gpu_node().await?;
    let chosen = Profile::from_environment().chosen(Service::PlatformApi).is_some();
    let get = async |host: &str, path: &str| {
        let request = reqwest::Client::new()
            .get(topology.url(80, path))
            .header(HOST, host);
        let answer = request.send().await?;
        Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
    };

    for host in ["localhost", "app.localhost", "some.other.example"] {
        let (status, page) = get(host, "/").await?;
        assert_eq!(status, StatusCode::OK, "{host}");
        assert!(page.contains("<h1>GPU nodes</h1>"), "{host}: {page}");
        // The page reads a list whose fields the contract does not name: it is the reference's.
        assert!(chosen || page.contains(node.as_str()), "{host}: {page}");
    }
    let (status, health) = get("api.localhost", "/health").await?;
    assert_eq!(status, StatusCode::OK);
    let health: Value = serde_json::from_str(&health)?;
    assert!(
        health["status"] == "ok" && health["service"].is_string(),
        "{health}"
    );
    Ok(())
}

/// What a boot that fails says; that it leaves nothing is checked on the way.
async fn failure(builder: wopr_harness::topology::Builder) -> Result<String> {
    let engine = Engine::connect().await?;
    let run = tempfile::tempdir()?;
    let error = match builder.run_directory(run.path()).boot().await {
        Ok(topology) => bail!("{} booted", topology.id()),
        Err(error) => error.to_string(),
    };
    let label = format!("wopr.owner={}", run.path().display());
    let left = engine.topologies_with_label(&label).await?;
    assert!(left.is_empty(), "left behind: {left:?}");
    let files: Vec<_> = std::fs::read_dir(run.path())?.flatten().collect();
    assert!(files.is_empty(), "left behind: {files:?}");
    Ok(error)
}

#[tokio::test]
async fn a_missing_model_is_named() -> Result<()> {
    let models = tempfile::tempdir()?;
    let error = failure(Topology::builder().models(models.path())).await?;
    let path = models.path().join("tiny-llama.gguf");
    let expected = format!(
        "model {}, which LLAMA_MODEL_FILE in the gpu stack's settings names, is not there",
        path.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_truncated_model_is_named_with_both_lengths() -> Result<()> {
    let models = tempfile::tempdir()?;
    for entry in std::fs::read_dir(Dirs::find()?.tiny_models())?.flatten() {
        std::fs::copy(entry.path(), models.path().join(entry.file_name()))?;
    }
    let path = models.path().join("tiny-qwen2.gguf");
    std::fs::File::options()
        .write(true)
        .open(&path)?
        .set_len(190_000)?;
    let error = failure(Topology::builder().models(models.path())).await?;
    assert!(
        error.ends_with("is truncated: it has 190000 bytes, and its tensors need 190048; download it again"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_named() -> Result<()> {
    let profile = Profile::local().with_image(Service::PlatformApi, "wopr.invalid/nothing:never");
    let error = failure(Topology::builder().profile(profile)).await?;
    assert!(
        error.starts_with("image wopr.invalid/nothing:never is not on this host"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_service_that_cannot_start_is_named_with_its_last_words() -> Result<()> {
    let error = failure(Topology::builder().with(Role::Vps, "PLATFORM_SECRET", "short")).await?;
    assert!(
        error.starts_with("platform-api on vps did not become healthy"),
        "{error}"
    );
    // As the contract has it, with the reason in platform-api's own words.
    for words in ["Environment validation failed", "PLATFORM_SECRET"] {
        assert!(error.contains(words), "{error}");
    }
    Ok(())
}

#[test]
fn a_broken_env_file_is_named_with_its_line() -> Result<()> {
    let root = tempfile::tempdir()?;
    let found = Dirs::find()?;
    for role in ["vps", "gpu"] {
        let (from, to) = (
            found.root.join("local").join(role),
            root.path().join("local").join(role),
        );
        std::fs::create_dir_all(&to)?;
        std::fs::copy(from.join(".env.example"), to.join(".env.example"))?;
    }
    let file = root.path().join("local/vps/.env");
    std::fs::write(&file, "GPU_NODE_SECRET=fine\nthis is not a setting\n")?;
    let dirs = Dirs {
        root: root.path().to_owned(),
        ..found
    };
    let error = StackSettings::by_hand(&dirs)
        .err()
        .context("it was taken")?
        .to_string();
    assert!(error.contains(&format!("{}:2", file.display())), "{error}");
    assert!(!error.contains("fine"), "no value is shown: {error}");
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_named_with_who_holds_it() -> Result<()> {
    let engine = Engine::connect().await?;
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port();
    let spec = ContainerSpec {
        ports: vec![PortMap {
            container: 80,
            host: HostPort::Fixed {
                port,
                variable: "WOPR_HTTP_PORT",
            },
        }],
        ..ContainerSpec::new("wopr-test-port", "wopr/none:none", Privilege::Default)
    };
    let error = engine
        .start(&spec, None)
        .await
        .err()
        .context("it started")?
        .to_string();
    let pid = std::process::id();
    assert!(
        error.starts_with(&format!("port {port} on 127.0.0.1 is taken by ")),
        "{error}"
    );
    assert!(
        error.contains(&format!("(pid {pid})")) && error.contains("WOPR_HTTP_PORT"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_named() -> Result<()> {
    let error = Engine::at("/nowhere/docker.sock".into())
        .await
        .err()
        .context("it answered")?
        .to_string();
    assert!(
        error.contains("/nowhere/docker.sock") && error.contains("./ci/up"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_image_that_was_chosen_runs_in_its_services_place() -> Result<()> {
    const CHOSEN: &str = "wopr-test/platform-ui:chosen";
    let engine = Engine::connect().await?;
    let usual = Topology::builder().boot().await?;
    let image = usual
        .machine(&VPS)
        .service(Service::PlatformUi)
        .await?
        .context("no platform-ui")?
        .image;
    engine.tag(&image, CHOSEN).await?;

    let profile = Profile::local().with_image(Service::PlatformUi, CHOSEN);
    let topology = Topology::builder().profile(profile).boot().await?;
    let running = topology
        .machine(&VPS)
        .service(Service::PlatformUi)
        .await?
        .context("no platform-ui")?;
    assert_eq!((running.image.as_str(), running.running), (CHOSEN, true));
    assert!(topology.health(Service::PlatformUi).await.is_ok());

    let set = topology.setting().image_set.clone();
    assert_ne!(set, usual.setting().image_set, "another image is another set");
    topology.down().await?;
    wopr_harness::image::remove(&engine, &set).await?;
    engine.remove_image(CHOSEN).await?;
    Ok(())
}
