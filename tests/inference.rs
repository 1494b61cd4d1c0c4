//! Inference over a link that is slow, or breaks in the middle: the client is told, the service recovers, and the
//! next request is answered. Requests are sent from the VPS machine, as the platform's are.

use std::time::Duration;

use anyhow::{Result, ensure};
use pretty_assertions::assert_eq;
use rstest::rstest;
use tokio::task::JoinHandle;
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::history::Health;
use wopr_harness::history::Status::Active;
use wopr_harness::testing::topology;
use wopr_harness::watch::services;
use wopr_harness::{GPU, Service, Topology, VPS};

/// A request over a broken link ends by curl's own limits, or by this.
const LIMIT: Duration = Duration::from_secs(30);
const LLAMA: u16 = 8080;
const SPEECH: u16 = 8081;
const WHISPER: u16 = 8082;
const EMBEDDINGS: u16 = 8083;
/// What a poll finds of an engine that is out of reach.
const LLAMA_ALONE_DOWN: [(&str, Health); 4] = [
    ("llama", Health::Down),
    ("chatterbox", Health::Ok),
    ("whisper", Health::Ok),
    ("qwen", Health::Ok),
];
/// The end of a stream that is whole.
const DONE: &str = "data: [DONE]";
/// Where the VPS machine has a recording to send.
const RECORDING: &str = "/run/recording.wav";

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq)]
struct Ended {
    /// curl's: 0 where it got all that it was promised.
    code: i32,
    body: String,
}

impl Ended {
    /// Every client can tell: the connection broke, or the stream has no end.
    fn is_an_error(&self) -> bool {
        self.code != 0 && !self.body.contains(DONE)
    }
}

/// Runs curl in the VPS machine, with these arguments in the shell's words.
async fn curl(topology: &Topology, arguments: &str) -> Result<Ended> {
    let script = format!("curl --silent --no-buffer --noproxy '*' --max-time 20 {arguments}");
    let (code, body) = topology
        .control(&VPS)
        .await?
        .run_any(&["sh", "-c", &script], LIMIT)
        .await?;
    Ok(Ended { code, body })
}

fn url(topology: &Topology, port: u16, path: &str) -> String {
    format!("http://{}:{port}{path}", topology.address(&GPU))
}

/// The arguments of a streaming completion of so many tokens.
fn streaming(topology: &Topology, tokens: u32) -> String {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"shall we play a game?"}}],"stream":true,"seed":1,"temperature":0,"ignore_eos":true,"max_tokens":{tokens}}}"#
    );
    let url = url(topology, LLAMA, "/v1/chat/completions");
    format!("--json '{body}' {url}")
}

/// The same, but under way for many seconds on any host: each token brings its two hundred likeliest, thirty megabytes
/// in all, of which the client takes one a second. The kernels between hold a few; a server whose whole answer they held
/// would be done with it before it is killed. What they hold, the client has read before its limit.
fn streaming_for_long(topology: &Topology) -> String {
    let arguments = streaming(topology, 1900);
    let wordy = arguments.replacen('{', r#"{"logprobs":true,"top_logprobs":200,"#, 1);
    format!("--max-time 25 --limit-rate 1M {wordy}")
}

/// The arguments of an upload of the recording.
fn upload(topology: &Topology) -> String {
    let url = url(topology, WHISPER, "/v1/audio/transcriptions");
    format!("--form file=@{RECORDING} --form temperature=0 {url}")
}

/// Speaks a recording, for uploads, and returns its length.
async fn record(topology: &Topology) -> Result<usize> {
    let url = url(topology, SPEECH, "/v1/audio/speech");
    let words = "Greetings, Professor Falken. A strange game. The only winning move is not to play.";
    let spoken = curl(
        topology,
        &format!(
            r#"--json '{{"input":"{words}"}}' --output {RECORDING} --write-out '%{{size_download}}' {url}"#
        ),
    )
    .await?;
    ensure!(spoken.code == 0, "{spoken:?}");
    Ok(spoken.body.parse()?)
}

/// A request that is under way while the test does something else.
fn begin(topology: &Topology, arguments: String) -> JoinHandle<Result<Ended>> {
    let machine = topology.machine(&VPS).clone();
    tokio::spawn(async move {
        let script = format!("curl --silent --no-buffer --noproxy '*' --max-time 8 {arguments}");
        let mut control = machine.control().await?;
        let (code, body) = control.run_any(&["sh", "-c", &script], LIMIT).await?;
        Ok(Ended { code, body })
    })
}

/// Waits until the VPS machine has a connection to a port of the GPU machine.
async fn is_under_way(topology: &Topology, port: u16) -> Result<()> {
    let script = format!(
        "for _ in $(seq 500); do ss --no-header state established dst {}:{port} | grep -q . && exit; sleep 0.01; done; exit 1",
        topology.address(&GPU)
    );
    topology
        .control(&VPS)
        .await?
        .run(&["sh", "-c", &script], LIMIT)
        .await?;
    Ok(())
}

#[rstest]
#[case::after_some_bytes(Toxic::LimitData { bytes: 900 })]
#[case::by_a_reset(Toxic::ResetPeer { timeout: Duration::from_millis(30) })]
#[case::by_silence(Toxic::Timeout { timeout: Duration::from_millis(300) })]
#[tokio::test]
async fn a_stream_that_is_cut_short_is_an_error_and_the_next_is_whole(#[case] toxic: Toxic) -> Result<()> {
    let topology = topology().await;
    let whole = curl(&topology, &streaming(&topology, 64)).await?;
    assert!(whole.code == 0 && whole.body.contains(DONE), "{whole:?}");

    let link = topology.link(VPS, GPU).port(LLAMA);
    let cut = link.toxic(toxic, Stream::Downstream).await?;
    let broken = curl(&topology, &streaming(&topology, 1500)).await?;
    assert!(broken.is_an_error(), "{broken:?}");
    cut.heal().await?;
    let next = curl(&topology, &streaming(&topology, 64)).await?;
    assert!(next.code == 0 && next.body.contains(DONE), "{next:?}");
    Ok(())
}

#[tokio::test]
async fn half_an_answer_is_seen_before_the_stream_breaks() -> Result<()> {
    let topology = topology().await;
    let link = topology.link(VPS, GPU).port(LLAMA);
    let cut = link
        .toxic(Toxic::LimitData { bytes: 2000 }, Stream::Downstream)
        .await?;
    let broken = curl(&topology, &streaming(&topology, 200)).await?;
    let chunks = broken.body.matches("data: {").count();
    assert!(broken.is_an_error() && chunks > 1 && chunks < 200, "{broken:?}");
    cut.heal().await?;
    Ok(())
}

#[tokio::test]
async fn more_broken_streams_than_slots_leave_a_slot_for_the_next() -> Result<()> {
    let topology = topology().await;
    let link = topology.link(VPS, GPU).port(LLAMA);
    let cut = link
        .toxic(Toxic::LimitData { bytes: 900 }, Stream::Downstream)
        .await?;
    // The stack gives llama-server two slots.
    for _ in 0..5 {
        let broken = curl(&topology, &streaming(&topology, 1500)).await?;
        assert!(broken.is_an_error(), "{broken:?}");
    }
    cut.heal().await?;
    let next = curl(&topology, &streaming(&topology, 16)).await?;
    assert!(next.code == 0 && next.body.contains(DONE), "{next:?}");
    Ok(())
}

#[tokio::test]
async fn a_stream_whose_server_is_killed_is_an_error_and_works_after_its_return() -> Result<()> {
    let topology = topology().await;
    let stream = begin(&topology, streaming_for_long(&topology));
    is_under_way(&topology, LLAMA).await?;
    let killed = topology.kill_service(Service::LlamaCpp).await?;
    let broken = stream.await??;
    // A transfer that was closed, or reset; and not one that curl gave up for its own limits.
    assert!(
        broken.is_an_error() && [18, 56].contains(&broken.code),
        "{broken:?}"
    );
    // What its client was told, the watchdog finds as well.
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.found(services(LLAMA_ALONE_DOWN)).await?;
    killed.heal().await?;
    topology.until_healthy(&[Service::LlamaCpp]).await?;
    let next = curl(&topology, &streaming(&topology, 16)).await?;
    assert!(next.code == 0 && next.body.contains(DONE), "{next:?}");
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn latency_delays_the_first_byte_by_itself_and_no_less() -> Result<()> {
    let topology = topology().await;
    let latency = Duration::from_millis(400);
    let link = topology.link(VPS, GPU).port(EMBEDDINGS);
    let ask = format!(
        "--output /dev/null --write-out '%{{time_starttransfer}}' --json '{{\"input\":\"tic-tac-toe\"}}' {}",
        url(&topology, EMBEDDINGS, "/v1/embeddings")
    );
    let slow = Toxic::Latency {
        latency,
        jitter: Duration::ZERO,
    };
    let slow = link.toxic(slow, Stream::Downstream).await?;
    let late = curl(&topology, &ask).await?;
    assert!(late.body.parse::<f64>()? >= latency.as_secs_f64(), "{late:?}");
    slow.heal().await?;
    let prompt = curl(&topology, &ask).await?;
    assert!(
        prompt.body.parse::<f64>()? < late.body.parse()?,
        "{prompt:?} {late:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_narrow_link_delivers_all_of_a_speech_at_its_own_pace() -> Result<()> {
    let topology = topology().await;
    let length = record(&topology).await?;
    let kilobytes = u32::try_from(length / 1000)?;
    // Two seconds' worth.
    let link = topology.link(VPS, GPU).port(SPEECH);
    let narrow = link
        .toxic(
            Toxic::Bandwidth {
                rate: (kilobytes / 2).max(1),
            },
            Stream::Downstream,
        )
        .await?;
    let began = tokio::time::Instant::now();
    let again = record(&topology).await?;
    assert_eq!(again, length, "nothing is missing");
    assert!(
        began.elapsed() > Duration::from_millis(1200),
        "{:?}",
        began.elapsed()
    );
    narrow.heal().await?;
    Ok(())
}

#[tokio::test]
async fn an_upload_of_speech_that_is_cut_halfway_by_silence_ends_and_the_next_is_heard_the_same() -> Result<()>
{
    let topology = topology().await;
    let length = record(&topology).await?;
    let heard = curl(&topology, &upload(&topology)).await?;
    assert_eq!(heard.code, 0, "{heard:?}");

    // Some ten seconds of sending, of which it gets two or so.
    let slowly = format!("--limit-rate {} {}", length / 10, upload(&topology));
    let sending = begin(&topology, slowly);
    is_under_way(&topology, WHISPER).await?;
    let cut = topology.link(VPS, GPU).drop_packets().await?;
    let broken = sending.await??;
    assert!(broken.is_an_error(), "{broken:?}");
    cut.heal().await?;
    let next = curl(&topology, &upload(&topology)).await?;
    assert_eq!(next, heard);
    Ok(())
}

#[tokio::test]
async fn an_upload_of_speech_that_is_reset_halfway_ends_at_once_and_the_next_is_heard_the_same() -> Result<()>
{
    let topology = topology().await;
    let length = record(&topology).await?;
    let heard = curl(&topology, &upload(&topology)).await?;
    let slowly = format!("--limit-rate {} {}", length / 10, upload(&topology));
    let sending = begin(&topology, slowly);
    is_under_way(&topology, WHISPER).await?;
    let cut = topology.link(VPS, GPU).port(WHISPER).reset().await?;
    let broken = sending.await??;
    assert!(broken.is_an_error(), "{broken:?}");
    // 28 would be its own patience.
    assert_ne!(broken.code, 28, "{broken:?}");
    cut.heal().await?;
    assert_eq!(curl(&topology, &upload(&topology)).await?, heard);
    Ok(())
}

#[tokio::test]
async fn an_upload_that_loses_its_end_is_not_taken_for_a_whole_one() -> Result<()> {
    let topology = topology().await;
    let length = record(&topology).await?;
    let heard = curl(&topology, &upload(&topology)).await?;
    let half = u32::try_from(length / 2)?;
    let link = topology.link(VPS, GPU).port(WHISPER);
    let cut = link
        .toxic(Toxic::LimitData { bytes: half }, Stream::Upstream)
        .await?;
    let broken = curl(&topology, &upload(&topology)).await?;
    assert!(broken.is_an_error(), "{broken:?}");
    cut.heal().await?;
    assert_eq!(curl(&topology, &upload(&topology)).await?, heard);
    Ok(())
}

#[tokio::test]
async fn a_black_hole_for_one_engine_leaves_the_other_three_alone() -> Result<()> {
    let topology = topology().await;
    record(&topology).await?;
    let hole = topology.link(VPS, GPU).port(LLAMA).drop_packets().await?;
    let embedding = format!(
        "--fail --json '{{\"input\":\"chess\"}}' {}",
        url(&topology, EMBEDDINGS, "/v1/embeddings")
    );
    assert_eq!(curl(&topology, &embedding).await?.code, 0);
    assert_eq!(curl(&topology, &upload(&topology)).await?.code, 0);
    assert!(record(&topology).await? > 1000);
    let lost = curl(&topology, &format!("--max-time 1 {}", streaming(&topology, 4))).await?;
    assert_eq!(lost.code, 28, "{lost:?}");
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.found(services(LLAMA_ALONE_DOWN)).await?;
    hole.heal().await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_link_that_loses_a_tenth_of_its_packets_changes_no_answer() -> Result<()> {
    let topology = topology().await;
    let ask = streaming(&topology, 64);
    let text = |ended: &Ended| -> String {
        let chunks = ended.body.lines().filter_map(|line| line.strip_prefix("data: {"));
        let said = chunks.filter_map(|chunk| chunk.split_once(r#""content":""#));
        said.map(|(_, rest)| rest.split('"').next().unwrap_or_default())
            .collect()
    };
    let whole = curl(&topology, &ask).await?;
    let lossy = topology.link(VPS, GPU).lose(0.1).await?;
    let same = curl(&topology, &ask).await?;
    assert_eq!((same.code, text(&same)), (0, text(&whole)), "{same:?}");
    lossy.heal().await?;
    Ok(())
}
