//! What a client is told without asking: resources that have changed, ends of tasks as log messages,
//! and Claude's channel. One follower of the log for each connection that wants any of it.
//! Must not keep an engine alive that nobody needs, must not start one, and must not let a client that
//! does not read hold anything up.
#![allow(
    deprecated,
    reason = "the older generation is told of ends as log messages, which the newer one has no more"
)]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rmcp::{
    RoleServer,
    model::{
        CustomNotification, LoggingLevel, LoggingMessageNotificationParam,
        ResourceUpdatedNotificationParam, ServerNotification,
    },
    service::{Peer, SubscriptionSink},
};
use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    door::{Door, Refusal},
    resources::{Address, Part},
};
use crate::{
    api::{event::Event, task::Task},
    client::{Events, Heard},
};

/// Addresses that one connection may be told of.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 64;
/// From the first change to the word of it: what changes meanwhile is one word.
const GATHER: Duration = Duration::from_millis(200);
/// A client that takes longer to take a word of ours is told nothing any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a connection wants to be told.
#[derive(Debug, Default)]
pub(super) struct Wants {
    addresses: BTreeSet<String>,
    level: Option<LoggingLevel>,
    channel: bool,
    following: Option<JoinHandle<()>>,
}

impl Wants {
    fn is_followed(&self) -> bool {
        let following = self.following.as_ref();
        following.is_some_and(|task| !task.is_finished())
    }
}

impl Drop for Wants {
    fn drop(&mut self) {
        if let Some(following) = &self.following {
            following.abort();
        }
    }
}

/// Of one connection; its follower ends with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    wants: Arc<Mutex<Wants>>,
}

impl Notifier {
    fn wants(&self) -> MutexGuard<'_, Wants> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// When there are as many as one connection may have.
    pub(crate) fn subscribe(&self, uri: &str) -> Result<(), String> {
        let mut wants = self.wants();
        if wants.addresses.len() >= SUBSCRIPTIONS_MAX && !wants.addresses.contains(uri) {
            return Err(format!(
                "subscribe to {uri}: one connection may have {SUBSCRIPTIONS_MAX}; end another one"
            ));
        }
        wants.addresses.insert(uri.to_owned());
        Ok(())
    }

    pub(crate) fn unsubscribe(&self, uri: &str) {
        self.wants().addresses.remove(uri);
    }

    pub(crate) fn level(&self, level: LoggingLevel) {
        self.wants().level = Some(level);
    }

    pub(crate) fn channel(&self) {
        self.wants().channel = true;
    }

    pub(crate) fn has_channel(&self) -> bool {
        self.wants().channel
    }

    /// From now on, if nobody does yet. Now is known when this returns: what happens next is told even
    /// if it is another engine's.
    ///
    /// # Errors
    /// When whoever asks may not hear of it: then nothing would ever be told.
    pub(crate) async fn follow(&self, door: Door, peer: Peer<RoleServer>) -> Result<(), Refusal> {
        if self.wants().is_followed() {
            return Ok(());
        }
        let begun = door.begin().await?;
        let mut wants = self.wants();
        // Two at once have asked, and one has begun.
        if wants.is_followed() {
            return Ok(());
        }
        // Not the connection itself, which ends the follower when it goes.
        let ear = Ear::Connection {
            peer,
            wants: Arc::downgrade(&self.wants),
        };
        wants.following = Some(tokio::spawn(
            async move { follow(&door, &ear, begun).await },
        ));
        Ok(())
    }
}

/// Whom a follower tells.
pub(super) enum Ear {
    Connection {
        peer: Peer<RoleServer>,
        wants: std::sync::Weak<Mutex<Wants>>,
    },
    /// A request that listens (2026-07-28 and later).
    Listening(SubscriptionSink),
}

/// Nobody is there any more.
struct Gone;

impl Ear {
    fn wants(&self, uri: &str) -> bool {
        match self {
            Self::Connection { wants, .. } => wants.upgrade().is_some_and(|wants| {
                let wants = wants.lock().unwrap_or_else(PoisonError::into_inner);
                wants.addresses.contains(uri)
            }),
            Self::Listening(sink) => {
                let accepted = sink.accepted().resource_subscriptions.as_ref();
                accepted.is_some_and(|uris| uris.iter().any(|known| known == uri))
            }
        }
    }

    /// The addresses under which this task's events are asked for; a subscription may be to a prefix.
    fn addresses(&self) -> Vec<String> {
        match self {
            Self::Connection { wants, .. } => wants.upgrade().map_or_else(Vec::new, |wants| {
                let wants = wants.lock().unwrap_or_else(PoisonError::into_inner);
                wants.addresses.iter().cloned().collect()
            }),
            Self::Listening(sink) => {
                let accepted = sink.accepted().resource_subscriptions.clone();
                accepted.unwrap_or_default()
            }
        }
    }

    fn level(&self) -> Option<LoggingLevel> {
        let Self::Connection { wants, .. } = self else {
            return None;
        };
        let wants = wants.upgrade()?;
        let wants = wants.lock().unwrap_or_else(PoisonError::into_inner);
        wants.level
    }

    fn has_channel(&self) -> bool {
        let Self::Connection { wants, .. } = self else {
            return false;
        };
        wants.upgrade().is_some_and(|wants| {
            let wants = wants.lock().unwrap_or_else(PoisonError::into_inner);
            wants.channel
        })
    }

    async fn updated(&self, uri: &str) -> Result<(), Gone> {
        let told = async {
            match self {
                Self::Connection { peer, .. } => {
                    let param = ResourceUpdatedNotificationParam::new(uri);
                    peer.notify_resource_updated(param).await.is_ok()
                }
                Self::Listening(sink) => sink.notify_resource_updated(uri).await.is_ok(),
            }
        };
        within(told).await
    }

    async fn listed(&self) -> Result<(), Gone> {
        let told = async {
            match self {
                Self::Connection { peer, .. } => peer.notify_resource_list_changed().await.is_ok(),
                Self::Listening(sink) => {
                    let wanted = sink.accepted().resources_list_changed == Some(true);
                    !wanted || sink.notify_resource_list_changed().await.is_ok()
                }
            }
        };
        within(told).await
    }

    async fn say(&self, notification: ServerNotification) -> Result<(), Gone> {
        match self {
            Self::Connection { peer, .. } => {
                within(async { peer.send_notification(notification).await.is_ok() }).await
            }
            Self::Listening(_) => Ok(()),
        }
    }
}

async fn within(told: impl Future<Output = bool>) -> Result<(), Gone> {
    match timeout(PATIENCE, told).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Gone),
    }
}

/// Until the client has gone, does not listen, or may not hear any more. What has not begun does from
/// what there is then.
pub(super) async fn follow(door: &Door, ear: &Ear, mut begun: Option<(Events, u64)>) {
    let mut after = None;
    loop {
        let found = match begun.take() {
            Some(begun) => Ok(begun),
            None => door.follow(after).await,
        };
        let Ok((events, from)) = found else {
            return;
        };
        after = Some(from);
        match tell(door, ear, events, &mut after).await {
            // The engine has ended; another may come.
            Ok(()) => {}
            Err(Gone) => return,
        }
    }
}

async fn tell(
    door: &Door,
    ear: &Ear,
    mut events: Events,
    after: &mut Option<u64>,
) -> Result<(), Gone> {
    let mut changed = Changed::default();
    loop {
        let heard = match changed.due {
            Some(due) => tokio::select! {
                biased;
                () = sleep_until(due) => {
                    changed.tell(ear).await?;
                    continue;
                }
                heard = events.next() => heard,
            },
            None => events.next().await,
        };
        let event = match heard {
            Ok(Some(Heard::Event(event))) => event,
            Ok(Some(Heard::Live(live))) => {
                changed.part(ear, &live.task, Part::Log);
                continue;
            }
            Ok(Some(Heard::At(at))) => {
                *after = Some(at.seq);
                continue;
            }
            Ok(Some(Heard::Open(_))) => continue,
            Ok(None) | Err(_) => {
                changed.tell(ear).await?;
                return Ok(());
            }
        };
        *after = Some(event.seq);
        changed.note(ear, &event);
        if matters(&event) && (ear.has_channel() || ear.level().is_some()) {
            speak(door, ear, &event).await?;
        }
    }
}

/// What has changed since the client was told.
#[derive(Default)]
struct Changed {
    uris: BTreeSet<String>,
    list: bool,
    due: Option<Instant>,
}

impl Changed {
    fn note(&mut self, ear: &Ear, event: &Event) {
        let Some(task) = &event.task else {
            return;
        };
        if event.kind == "said" {
            return self.part(ear, task, Part::Log);
        }
        for address in [Address::Tasks, Address::Agents] {
            let uri = address.to_string();
            if ear.wants(&uri) {
                self.add(uri);
            }
        }
        for uri in ear.addresses() {
            let about = match Address::of(&uri) {
                Some(Address::Task(id)) => task.starts_with(&id),
                Some(Address::Part(id, part)) => {
                    task.starts_with(&id) && changes(part) == event.kind
                }
                Some(Address::Tasks | Address::Agents) | None => false,
            };
            if about {
                self.add(uri);
            }
        }
        if matches!(
            event.kind.as_str(),
            "task_created" | "task_removed" | "task_restored"
        ) {
            self.list = true;
            self.due.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }

    fn part(&mut self, ear: &Ear, task: &str, part: Part) {
        for uri in ear.addresses() {
            let about = match Address::of(&uri) {
                Some(Address::Part(id, known)) => known == part && task.starts_with(&id),
                Some(_) | None => false,
            };
            if about {
                self.add(uri);
            }
        }
    }

    fn add(&mut self, uri: String) {
        self.uris.insert(uri);
        self.due.get_or_insert_with(|| Instant::now() + GATHER);
    }

    async fn tell(&mut self, ear: &Ear) -> Result<(), Gone> {
        self.due = None;
        for uri in std::mem::take(&mut self.uris) {
            ear.updated(&uri).await?;
        }
        if std::mem::take(&mut self.list) {
            ear.listed().await?;
        }
        Ok(())
    }
}

/// The event after which a part is another.
fn changes(part: Part) -> &'static str {
    match part {
        Part::Log => "agent_ended",
        Part::Diff => "workspace_sealed",
        Part::Prompt => "prompt_made",
    }
}

/// What a person is told of in words.
fn matters(event: &Event) -> bool {
    matches!(
        event.kind.as_str(),
        "started" | "finished" | "permission_asked"
    )
}

async fn speak(door: &Door, ear: &Ear, event: &Event) -> Result<(), Gone> {
    let Some(id) = &event.task else {
        return Ok(());
    };
    // One that is gone by now is nothing to speak of.
    let Ok(task) = door.get::<Task>(&format!("/v1/tasks/{id}")).await else {
        return Ok(());
    };
    let ended = event.kind == "finished" && !task.is_open();
    if ear.has_channel() && (ended || event.kind != "finished") {
        ear.say(channel(&task, ended)).await?;
    }
    if let Some(level) = ear.level() {
        let own = severity(&task);
        if ended && own as u8 >= level as u8 {
            ear.say(message(&task, own)).await?;
        }
    }
    Ok(())
}

fn severity(task: &Task) -> LoggingLevel {
    match task.state.as_str() {
        "failed" | "lost" => LoggingLevel::Error,
        "blocked" => LoggingLevel::Warning,
        _ => LoggingLevel::Info,
    }
}

fn message(task: &Task, level: LoggingLevel) -> ServerNotification {
    let data = json!({
        "task": task.id, "state": task.state, "title": task.title, "reason": task.reason,
    });
    let param = LoggingMessageNotificationParam::new(level, data).with_logger("dispatch");
    ServerNotification::LoggingMessageNotification(rmcp::model::Notification::new(param))
}

/// As Claude Code reads it, and the fields that the Go dispatcher pushes.
fn channel(task: &Task, ended: bool) -> ServerNotification {
    let what = if ended {
        "agent.complete"
    } else {
        "agent.status"
    };
    let status = match task.open_asks().next() {
        Some(_) if !ended => "asks",
        Some(_) | None => &task.state,
    };
    let reason = task.question.as_deref().or(task.reason.as_deref());
    let more = reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    let content = format!(
        "{} ({}) in {}: {status}{more}",
        task.title, task.short, task.workspace_name
    );
    let meta = json!({
        "event": what, "agent": task.agent, "repo": task.repo,
        "workspace": task.workspace_name, "status": status, "task": task.id,
    });
    let params = json!({"content": content, "channel": what, "data": meta, "meta": meta});
    let told = CustomNotification::new("notifications/claude/channel", Some(params));
    ServerNotification::CustomNotification(told)
}
