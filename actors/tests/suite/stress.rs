//! The wake protocol under real threads: nothing lost, order kept, nobody stranded.

use std::time::Duration;

use rspp_actors::{
    Actor, Bounded, ChildSpec, Clock, Context, ControlRefused, DataRef, ExitReason, Failure, Item,
    LaneLimits, Offer, Overflow, Pump, PumpContext, System,
};
use tokio::sync::oneshot;

use crate::kit::count;

const SENDERS: usize = 4;
const ITEMS: u32 = 20_000;

/// A sender's number and the item's own.
type Numbered = (usize, u32);

/// Checks that each sender's items come in order and that all come.
struct Check {
    control: [u32; SENDERS],
    data: [u32; SENDERS],
    telemetry: u64,
    done: Option<oneshot::Sender<u64>>,
}

impl Check {
    fn new(done: oneshot::Sender<u64>) -> Self {
        Self {
            control: [0; SENDERS],
            data: [0; SENDERS],
            telemetry: 0,
            done: Some(done),
        }
    }

    fn control(&mut self, (sender, n): Numbered) {
        assert_eq!(n, self.control[sender], "control of {sender} out of order");
        self.control[sender] += 1;
        self.tell_when_done();
    }

    fn data(&mut self, (sender, n): Numbered) {
        assert_eq!(n, self.data[sender], "data of {sender} out of order");
        self.data[sender] += 1;
        self.tell_when_done();
    }

    fn tell_when_done(&mut self) {
        let all = self.control.iter().chain(&self.data);
        if all.copied().min() == Some(ITEMS)
            && let Some(done) = self.done.take()
        {
            let _ = done.send(self.telemetry);
        }
    }
}

impl Actor for Check {
    type Control = Numbered;
    type Data = Bounded<Numbered>;
    type Telemetry = Numbered;
    const KIND: &'static str = "check";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, n: Numbered) -> Result<(), Failure> {
        self.control(n);
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, n: Numbered) -> Result<(), Failure> {
        self.data(n);
        Ok(())
    }

    async fn on_telemetry(&mut self, _ctx: &mut Context<Self>, _: Numbered) -> Result<(), Failure> {
        self.telemetry += 1;
        Ok(())
    }
}

impl Pump for Check {
    type Control = Numbered;
    type Data = Bounded<Numbered>;
    type Telemetry = Numbered;
    const KIND: &'static str = "check pump";

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let stop = ctx.cancellation().clone();
        let mut tick = tokio::time::interval(Duration::from_micros(300));
        loop {
            // The interval gives up the wait for the next item again and again: nothing may be lost by that.
            tokio::select! {
                biased;
                () = stop.cancelled() => return ExitReason::Finished,
                _ = tick.tick() => {}
                item = ctx.next() => match item {
                    Item::Control(n) => self.control(n),
                    Item::Data(n) => self.data(n),
                    Item::News => unreachable!("a plain queue has no news"),
                    Item::Telemetry(_) => self.telemetry += 1,
                },
            }
        }
    }
}

/// Keeps a pump below it and hands out its lanes.
struct Holder {
    check: Option<Check>,
    out: Option<oneshot::Sender<rspp_actors::PumpHandle<Check>>>,
}

impl Actor for Holder {
    type Control = ();
    type Data = rspp_actors::NoData;
    type Telemetry = rspp_actors::NoTelemetry;
    const KIND: &'static str = "holder";

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let mut check = self.check.take();
        let pump = ctx
            .spawn_pump(spec(), lane(), move || check.take().expect("is made once"))
            .await?;
        let _ = self.out.take().expect("started once").send(pump);
        Ok(())
    }

    async fn on_control(&mut self, _ctx: &mut Context<Self>, (): ()) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(
        &mut self,
        _ctx: &mut Context<Self>,
        item: std::convert::Infallible,
    ) -> Result<(), Failure> {
        match item {}
    }
}

fn lane() -> Bounded<Numbered> {
    // Small, so that senders wait for space all the time.
    Bounded::new(count(4), Overflow::Refuse)
}

fn spec() -> ChildSpec {
    ChildSpec {
        limits: LaneLimits {
            control: count(8),
            control_reserve: count(1),
            telemetry: count(4),
        },
        ..ChildSpec::temporary("check")
    }
}

async fn send_data(lane: DataRef<Numbered>, sender: usize) {
    for n in 0..ITEMS {
        let mut item = (sender, n);
        loop {
            match lane.offer(item) {
                Offer::Queued => break,
                Offer::Full(back) => {
                    item = back;
                    lane.space().await;
                }
                offer @ (Offer::Displaced(_) | Offer::Closed(_)) => panic!("{offer:?}"),
            }
        }
    }
}

async fn saturate(to: rspp_actors::Handle<Check>, done: oneshot::Receiver<u64>) {
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        senders.spawn(send_data(to.data.clone(), sender));
        let control = to.control.clone();
        let telemetry = to.telemetry.clone();
        senders.spawn(async move {
            for n in 0..ITEMS {
                while let Err(refused) = control.send((sender, n)) {
                    assert!(matches!(refused, ControlRefused::Overflow(_)));
                    tokio::task::yield_now().await;
                }
                match telemetry.offer((sender, n)) {
                    Offer::Queued | Offer::Displaced(_) => {}
                    offer @ (Offer::Full(_) | Offer::Closed(_)) => panic!("{offer:?}"),
                }
            }
        });
    }
    let all = async {
        while let Some(sender) = senders.join_next().await {
            sender.unwrap();
        }
        done.await.unwrap()
    };
    let handled = tokio::time::timeout(Duration::from_mins(1), all)
        .await
        .expect("nobody is stranded");
    // Every telemetry item was either handled, counted as dropped, or is one of the few still waiting.
    let sent = SENDERS as u64 * u64::from(ITEMS);
    let accounted = handled + to.telemetry.dropped();
    assert!(
        (sent - 4..=sent).contains(&accounted),
        "{accounted} of {sent}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_coordinator_loses_nothing_under_many_threads() {
    let system = System::new(Clock::start());
    let (tell, done) = oneshot::channel();
    let mut check = Some(Check::new(tell));
    let to = system
        .spawn_root(spec(), lane(), move || check.take().expect("is made once"))
        .await
        .unwrap();
    saturate(to, done).await;
    assert!(system.shut_down(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pump_loses_nothing_under_many_threads() {
    let system = System::new(Clock::start());
    let (tell, done) = oneshot::channel();
    let (out, pump) = oneshot::channel();
    let mut holder = Some(Holder {
        check: Some(Check::new(tell)),
        out: Some(out),
    });
    system
        .spawn_root(
            ChildSpec::temporary("holder"),
            rspp_actors::NoData,
            move || holder.take().expect("is made once"),
        )
        .await
        .unwrap();
    saturate(pump.await.unwrap(), done).await;
    assert!(system.shut_down(Duration::from_secs(5)).await);
}
