// The original plan's architecture, as small as it is honest: Express accepts tasks, BullMQ on Redis queues them,
// a worker hands each to a child process that speaks stream-json. Arguments: PORT REDIS_PORT AGENTS ECHO_EXECUTABLE.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import express from "express";
import { Queue, QueueEvents, Worker } from "bullmq";

const [port, redisPort, agents, echo] = process.argv.slice(2);
const connection = { host: "127.0.0.1", port: Number(redisPort), maxRetriesPerRequest: null };
const queue = new Queue("tasks", { connection });
const events = new QueueEvents("tasks", { connection });
await events.waitUntilReady();

class Agent {
  constructor() {
    this.child = spawn(echo, ["--output-format=stream-json", "--input-format=stream-json"], { stdio: ["pipe", "pipe", "ignore"] });
    this.waiting = [];
    createInterface({ input: this.child.stdout }).on("line", (line) => {
      const frame = JSON.parse(line);
      if (frame.type === "result") this.waiting.shift()(frame.result);
    });
  }
  run(prompt) {
    return new Promise((done) => {
      this.waiting.push(done);
      this.child.stdin.write(JSON.stringify({ type: "user", message: { role: "user", content: prompt } }) + "\n");
    });
  }
}

const idle = Array.from({ length: Number(agents) }, () => new Agent());
const worker = new Worker("tasks", async (job) => {
  const agent = idle.pop();
  try {
    return await agent.run(job.data.prompt);
  } finally {
    idle.push(agent);
  }
}, { connection, concurrency: Number(agents), autorun: false });
worker.run();

const app = express();
app.use(express.json({ limit: "50mb" }));
app.post("/tasks", async (request, response) => {
  const job = await queue.add("task", { prompt: request.body.prompt });
  response.json({ id: job.id });
});
app.post("/tasks/run", async (request, response) => {
  const job = await queue.add("task", { prompt: request.body.prompt });
  response.json({ id: job.id, result: await job.waitUntilFinished(events) });
});
app.post("/tasks/batch", async (request, response) => {
  const jobs = await queue.addBulk(request.body.map((task) => ({ name: "task", data: { prompt: task.prompt } })));
  response.json({ ids: jobs.map((job) => job.id) });
});
app.post("/pause", async (_, response) => response.json(await worker.pause()));
app.post("/resume", async (_, response) => response.json(await worker.resume()));
app.get("/counts", async (_, response) => response.json(await queue.getJobCounts()));
const server = app.listen(Number(port), "127.0.0.1", () => console.log(`listening ${server.address().port}`));
