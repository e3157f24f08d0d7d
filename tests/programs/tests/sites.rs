//! The engine over sites that refuse, that never say, and none at all; and a child's end at its
//! parent. Life, ids and ends belong to the engine wherever a run is placed.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::sync::Arc;

use dispatch_core::{
    event::{Event, Kind},
    job::Exit,
    outcome::{Failure, Outcome},
    task::{Expects, Placement, Wrap},
};
use dispatch_engine::{
    engine::{Engine, Secrets, Sites},
    reader::Reader,
    sites::{
        Site, Start,
        fake::{Fake, Plan},
    },
};
use world::{World, outcome, reason, run, until};

fn sites(named: &[(&str, &Fake)]) -> Sites {
    let site = |(name, fake): &(&str, &Fake)| {
        (
            name.parse().unwrap(),
            Arc::new((*fake).clone()) as Arc<dyn Site>,
        )
    };
    named.iter().map(site).collect()
}

fn placement(names: &[&str]) -> Placement {
    Placement {
        sites: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..Placement::of(Wrap::Host)
    }
}

fn events(world: &World) -> Vec<Event> {
    Reader::open(&world.data())
        .unwrap()
        .events(0, 10_000)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_moves_on_to_the_next_site_and_the_hop_is_an_event() {
    for refusal in [
        Start::Declined("busy".into()),
        Start::NotStarted("no room".into()),
    ] {
        let world = World::new();
        let far = Fake::new(Plan {
            start: refusal,
            ..Plan::default()
        });
        let engine = world.engine_with(sites(&[("far", &far)])).await;
        let mut spec = world.spec(&["write a b", "say here"]);
        spec.placement = placement(&["far", "local"]);
        let view = run(&engine, spec).await;
        assert_eq!(reason(&view), "here");
        assert_eq!(
            view.task
                .last_run()
                .unwrap()
                .site
                .as_ref()
                .unwrap()
                .as_str(),
            "local"
        );
        let hops = events(&world);
        let hops = hops
            .iter()
            .filter(|event| matches!(event.kind, Kind::SiteRefused { .. }));
        assert_eq!(hops.count(), 1);
        assert_eq!(far.agent_starts(), [0; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_refuse_nothing_ran_and_every_reason_is_told() {
    let world = World::new();
    let far = Fake::new(Plan {
        start: Start::Declined("busy".into()),
        ..Plan::default()
    });
    let engine = world
        .engine_with(sites(&[("far", &far), ("near", &far)]))
        .await;
    let mut spec = world.spec(&["write a b"]);
    spec.placement = placement(&["far", "near"]);
    let view = run(&engine, spec).await;
    assert!(matches!(
        outcome(&view),
        Outcome::Failed(Failure::Start { .. })
    ));
    assert!(
        reason(&view).contains("far: declined: busy; near: declined: busy"),
        "{}",
        reason(&view)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_unknown_no_other_site_is_tried() {
    let world = World::new();
    let far = Fake::new(Plan {
        start: Start::Unknown("no answer".into()),
        ..Plan::default()
    });
    let engine = world.engine_with(sites(&[("far", &far)])).await;
    let mut spec = world.spec(&["write a b"]);
    spec.placement = placement(&["far", "local"]);
    let view = run(&engine, spec).await;
    // It was asked until it was known: it never started, and that is not an end we saw.
    assert_eq!(*outcome(&view), Outcome::Lost);
    assert_eq!(
        view.task
            .last_run()
            .unwrap()
            .site
            .as_ref()
            .unwrap()
            .as_str(),
        "far"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_not_registered_is_an_error_and_none_means_this_machine() {
    let world = World::new();
    let engine = world.engine().await;
    let mut spec = world.spec(&["write a b"]);
    spec.placement = placement(&["mars"]);
    let view = run(&engine, spec).await;
    assert!(
        reason(&view).contains("no site named mars"),
        "{}",
        reason(&view)
    );
    let view = run(&engine, world.spec(&["write a b"])).await;
    assert_eq!(
        view.task
            .last_run()
            .unwrap()
            .site
            .as_ref()
            .unwrap()
            .as_str(),
        "local"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_elsewhere_has_the_same_life() {
    let world = World::new();
    let far = Fake::new(Plan {
        out: b"a report\n".to_vec(),
        ..Plan::default()
    });
    let engine = world.engine_with(sites(&[("far", &far)])).await;
    let mut spec = world.spec(&[]);
    spec.placement = placement(&["far"]);
    spec.expects = Expects::Report;
    let view = run(&engine, spec).await;
    assert_eq!(
        *outcome(&view),
        Outcome::Completed {
            summary: "a report".into()
        }
    );
    assert_eq!(
        view.task.last_run().unwrap().report.as_ref().unwrap().exit,
        Exit::Code(0)
    );
    assert_eq!(far.agent_starts(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_goes_on_with_a_run_elsewhere() {
    let world = World::new();
    let far = Fake::new(Plan {
        exit: None,
        ..Plan::default()
    });
    let engine = world.engine_with(sites(&[("far", &far)])).await;
    let mut spec = world.spec(&[]);
    spec.placement = placement(&["far"]);
    spec.expects = Expects::Report;
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    engine.shutdown().await.unwrap();
    let engine = world.engine_with(sites(&[("far", &far)])).await;
    until(&engine, run.task, |kind| matches!(kind, Kind::Adopted)).await;
    stop(&engine, run.task).await;
    let view = world::finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "stopped");
    assert_eq!(far.agent_starts(), [1]);
}

async fn stop(engine: &Engine, task: dispatch_core::id::TaskId) {
    engine
        .stop(task, dispatch_engine::view::Force::Ask)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_end_is_delivered_to_its_parent() {
    let world = World::new();
    let engine = world.engine().await;
    let parent = run(&engine, world.spec(&["write a b"])).await.task.id;
    let mut spec = world.spec(&["write c d"]);
    spec.parent = Some(parent);
    let child = run(&engine, spec).await.task.id;
    let told = until(&engine, parent, |kind| {
        matches!(kind, Kind::ChildEnded { .. })
    })
    .await;
    assert_eq!(
        told.kind,
        Kind::ChildEnded {
            child,
            state: "completed".into(),
            child_run: 1,
            reason: String::new(),
        }
    );
}
