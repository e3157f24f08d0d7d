//! What each command comes to, and when whoever sent it is answered: after the commit.
//! Must not do the work itself.

use dispatch_core::{family::Deed, keys::Made, spending::Spending};

use super::{
    Actor,
    once::{a_message, a_run},
};
use crate::{
    engine::command::{Command, answer},
    reads,
    view::{VerbError, Who},
};

impl Actor {
    pub(super) fn handle(&mut self, command: Command) {
        match command {
            Command::May { run, deed, reply } => {
                let may = self.may(run, deed);
                self.reply_later(reply, may);
            }
            Command::Family { run, reply } => {
                let may = self.may(run, Deed::Events);
                let family = may.map(|()| self.family(run.task));
                self.reply_later(reply, family);
            }
            Command::Wait {
                who,
                tasks,
                mode,
                until,
                reply,
            } => self.wait(who, tasks, mode, until, reply),
            // It is looked at with everything that happens.
            Command::Left => {}
            Command::Detach { who, task, reply } => {
                let may = self.lets(who, Deed::Detach(task));
                let detached = may.and_then(|()| self.detach(task));
                self.reply_later(reply, detached);
            }
            Command::Owed { run, reply } => {
                let owed = self.is_owed(run);
                self.reply_later(reply, Ok(owed));
            }
            Command::Dispatch {
                who,
                spec,
                kept,
                secrets,
                key,
                reply,
            } => {
                let made = self.once(key, secrets, |actor, secrets| {
                    let made = match who {
                        Who::Person => actor.dispatch(*spec, kept, secrets),
                        Who::Run(by) => actor.dispatch_for(by, *spec, kept),
                    };
                    made.map(Made::Run)
                });
                self.reply_later(reply, made.and_then(a_run));
            }
            Command::Answer {
                who,
                task,
                text,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    actor.lets(who, Deed::Answer(task))?;
                    actor.hands_over(who, task, false, &tuning)?;
                    let by = who.sender();
                    actor.answer(task, text, by, tuning, secrets).map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Retry {
                task,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    actor.retry(task, tuning, secrets).map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Resume {
                task,
                agent,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    let queued = actor.resume(task, agent, tuning, secrets);
                    queued.map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Say {
                who,
                task,
                text,
                from,
                kept,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    actor.lets(who, Deed::Say(task))?;
                    actor.hands_over(who, task, kept.is_some(), &tuning)?;
                    let message = actor.say(task, text, from, (kept, tuning), secrets)?;
                    Ok(Made::Message { task, message })
                });
                match queued.and_then(a_message) {
                    Ok((task, message)) => self.tell_when_heard(task, message, reply),
                    Err(error) => self.reply_later(reply, Err(error)),
                }
            }
            Command::Unsay {
                task,
                message,
                reply,
            } => self.unsay(task, message, reply),
            Command::Keys { run, reply } => {
                let known = self.gate().known_keys(run);
                self.reply_later(reply, Ok(known));
            }
            Command::Recalls { run, reply } => {
                let recalled = self.recalled(run);
                self.reply_later(reply, Ok(recalled));
            }
            Command::Compact { task, reply } => {
                let asked = self.compact(task);
                self.reply_later(reply, asked);
            }
            Command::Permit {
                who,
                task,
                ask,
                allow,
                always,
                by,
                why,
                reply,
            } => {
                let may = self.lets(who, Deed::Permit { task, allow });
                let answered = may.and_then(|()| self.permit(task, ask, (allow, always), by, why));
                self.reply_later(reply, answered);
            }
            Command::Asks { run, reply } => {
                let task = self.state.task(run.task);
                let asks = task.into_iter().flat_map(|task| &task.asks);
                let asks = asks.filter(|ask| ask.run == run.n);
                let fates = asks.map(|ask| (ask.id, ask.fate.clone())).collect();
                self.reply_later(reply, Ok(fates));
            }
            Command::TakeAll { run, reply } => {
                let messages = self.take_all(run);
                self.reply_later(reply, Ok(messages));
            }
            Command::Take {
                run,
                out_offset,
                reply,
            } => {
                let message = self.take(run, out_offset);
                if message.is_none() {
                    self.deaf(run.task);
                }
                self.reply_later(reply, Ok(message));
            }
            Command::Deaf { run, reply } => {
                self.deaf(run.task);
                self.reply_later(reply, Ok(()));
            }
            Command::Letters(post) => self.post(post),
            Command::Stop {
                who,
                task,
                force,
                key,
                reply,
            } => {
                let stopped = self.stop_once(who, task, force, key);
                self.reply_later(reply, stopped);
            }
            Command::StopAll { force, reply } => {
                let stopped = self.stop_all(force);
                self.reply_later(reply, Ok(stopped));
            }
            Command::Freeze {
                frozen,
                scope,
                reply,
            } => {
                let set = self.freeze(frozen, scope);
                self.reply_later(reply, set);
            }
            Command::Provide { secrets, reply } => {
                self.provide(&secrets);
                self.reply_later(reply, Ok(()));
            }
            Command::Needs { reply } => {
                let needs = self.needs();
                self.reply_later(reply, Ok(needs));
            }
            Command::Tasks { who, reply } => self.effects.push(Box::new(move |actor| {
                let may = actor.lets(who, Deed::List);
                answer(reply, may.and_then(|()| actor.all(who)));
            })),
            Command::List {
                who,
                listing,
                reply,
            } => self.effects.push(Box::new(move |actor| {
                let may = actor.lets(who, Deed::List);
                answer(reply, may.and_then(|()| actor.list(who, listing)));
            })),
            Command::Overview { reply } => self.effects.push(Box::new(move |actor| {
                answer(reply, Ok(reads::overview(&actor.gate())));
            })),
            Command::Spending { reply } => self.effects.push(Box::new(move |actor| {
                let spending = Spending::of(&actor.state);
                answer(reply, Ok((actor.state.seq(), spending)));
            })),
            Command::Task { who, task, reply } => self.effects.push(Box::new(move |actor| {
                let may = actor.lets(who, Deed::Show(task));
                let view = may.and_then(|()| {
                    actor.view(task, |run| {
                        let task = actor.state.task(run.task)?;
                        actor.state.pool(&task.spec.pool)?.place(run)
                    })
                });
                answer(reply, view);
            })),
            Command::Record {
                subject,
                kinds,
                reply,
            } => {
                let mut good = true;
                for kind in kinds {
                    good &= self.put(subject, kind);
                }
                let what = || "record what happened: see the log's last note".to_owned();
                let result = if good {
                    Ok(())
                } else {
                    Err(VerbError::BadInput { what: what() })
                };
                self.reply_later(reply, result);
            }
            Command::Finish {
                run,
                outcome,
                verified,
                swept,
                reply,
            } => {
                self.end(run, outcome, verified, swept);
                self.reply_later(reply, Ok(()));
            }
            Command::Shutdown { reply } => self.shutdown = Some(reply),
        }
    }
}
