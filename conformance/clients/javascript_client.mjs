// The JavaScript client (npm: @kubernetes/client-node) against a cluster: what a script or an operator in it does.
//
//     NODE_PATH=.cache/js/node_modules node conformance/clients/javascript_client.mjs --kubeconfig FILE
//
// The closing line is `N passed, M failed`.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import net from 'node:net';
import { PassThrough, Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

// A module may be installed anywhere NODE_PATH says, which `import` alone does not look at.
const k8s = await import(pathToFileURL(createRequire(import.meta.url).resolve('@kubernetes/client-node')));

const IMAGE = 'registry.k8s.io/e2e-test-images/busybox:1.37.0-1';
const kc = new k8s.KubeConfig();
kc.loadFromFile(process.argv[process.argv.indexOf('--kubeconfig') + 1]);
const core = kc.makeApiClient(k8s.CoreV1Api);
const apps = kc.makeApiClient(k8s.AppsV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(kc);

async function eventually(what, ask, seconds = 60) {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; await sleep(200)) {
    const answer = await ask();
    if (answer) return answer;
  }
  throw new Error(`waited ${seconds} s for ${what}`);
}

async function code(promise) {
  try {
    await promise;
    return 200;
  } catch (error) {
    return error.code;
  }
}

const configMap = (name, data = {}, labels = {}) => ({ metadata: { name, labels }, data });
const pod = (name, command) => ({
  metadata: { name, labels: { app: name } },
  spec: { terminationGracePeriodSeconds: 1, containers: [{ name: 'main', image: IMAGE, command }] },
});

async function running(namespace, name, command) {
  await core.createNamespacedPod({ namespace, body: pod(name, command) });
  await eventually('a running pod', async () =>
    (await core.readNamespacedPod({ namespace, name })).status.phase === 'Running');
}

function collect() {
  const chunks = [];
  const stream = new Writable({ write(chunk, _, done) { chunks.push(chunk); done(); } });
  stream.text = () => Buffer.concat(chunks).toString();
  return stream;
}

const checks = {
  async 'objects are created, read, changed and deleted'(namespace) {
    const made = await core.createNamespacedConfigMap({ namespace, body: configMap('a', { k: '1' }) });
    assert.ok(made.metadata.uid && made.metadata.creationTimestamp instanceof Date);
    const read = await core.readNamespacedConfigMap({ namespace, name: 'a' });
    read.data.k = '2';
    await core.replaceNamespacedConfigMap({ namespace, name: 'a', body: read });
    assert.equal(await code(core.replaceNamespacedConfigMap({ namespace, name: 'a', body: made })), 409);
    assert.equal(await code(core.createNamespacedConfigMap({ namespace, body: configMap('a') })), 409);
    assert.equal(await code(core.createNamespacedConfigMap({ namespace, body: configMap('A b') })), 422);
    assert.equal((await core.deleteNamespacedConfigMap({ namespace, name: 'a' })).status, 'Success');
    assert.equal(await code(core.readNamespacedConfigMap({ namespace, name: 'a' })), 404);
  },

  async 'patches of every type are applied'(namespace) {
    const as = (type) => k8s.setHeaderOptions('Content-Type', type);
    await core.createNamespacedConfigMap({ namespace, body: configMap('p', { k: '1' }) });
    const patch = (body, type, more = {}) =>
      core.patchNamespacedConfigMap({ namespace, name: 'p', body, ...more }, as(type));
    assert.deepEqual((await patch({ data: { m: '2' } }, k8s.PatchStrategy.MergePatch)).data, { k: '1', m: '2' });
    assert.deepEqual((await patch([{ op: 'remove', path: '/data/m' }], k8s.PatchStrategy.JsonPatch)).data, { k: '1' });
    assert.deepEqual((await patch({ data: { n: '3' } }, k8s.PatchStrategy.StrategicMergePatch)).data, { k: '1', n: '3' });
    const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'p' }, data: { n: '4' } };
    const applied = await patch(body, k8s.PatchStrategy.ServerSideApply, { fieldManager: 'js', force: true });
    assert.equal(applied.data.n, '4');
    const owner = applied.metadata.managedFields.find((m) => m.manager === 'js');
    assert.deepEqual(owner.fieldsV1, { 'f:data': { 'f:n': {} } });
  },

  async 'lists are paged and selected'(namespace) {
    for (let i = 0; i < 5; i++) {
      await core.createNamespacedConfigMap({ namespace, body: configMap(`n${i}`, {}, { odd: `${i % 2}` }) });
    }
    const names = [];
    let page;
    do {
      page = await core.listNamespacedConfigMap({ namespace, labelSelector: 'odd', limit: 2, _continue: page?.metadata._continue });
      names.push(...page.items.map((i) => i.metadata.name));
    } while (page.metadata._continue);
    assert.deepEqual(names, ['n0', 'n1', 'n2', 'n3', 'n4']);
    await core.deleteCollectionNamespacedConfigMap({ namespace, labelSelector: 'odd=1' });
    const left = await core.listNamespacedConfigMap({ namespace, labelSelector: 'odd' });
    assert.deepEqual(left.items.map((i) => i.metadata.name), ['n0', 'n2', 'n4']);
  },

  async 'an informer follows every change'(namespace) {
    const seen = [];
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const informer = k8s.makeInformer(kc, path, () => core.listNamespacedConfigMap({ namespace, labelSelector: 'i' }), 'i');
    for (const verb of ['add', 'update', 'delete']) informer.on(verb, (o) => seen.push(`${verb} ${o.metadata.name}`));
    await core.createNamespacedConfigMap({ namespace, body: configMap('before', {}, { i: 'y' }) });
    await informer.start();
    await core.createNamespacedConfigMap({ namespace, body: configMap('after', {}, { i: 'y' }) });
    await core.createNamespacedConfigMap({ namespace, body: configMap('other') });
    await eventually('two', () => seen.length >= 2, 20);
    const options = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch);
    await core.patchNamespacedConfigMap({ namespace, name: 'after', body: { data: { k: '1' } } }, options);
    await core.deleteNamespacedConfigMap({ namespace, name: 'before' });
    await eventually('four', () => seen.length >= 4, 20);
    assert.deepEqual(seen, ['add before', 'add after', 'update after', 'delete before']);
    assert.equal(informer.get('after', namespace).data.k, '1');
    await informer.stop();
  },

  async 'a watch tells types, bookmarks aside, and ends'(namespace) {
    const seen = [];
    const list = await core.listNamespacedConfigMap({ namespace });
    await core.createNamespacedConfigMap({ namespace, body: configMap('w') });
    await core.deleteNamespacedConfigMap({ namespace, name: 'w' });
    await new Promise((resolve, reject) => {
      const query = { resourceVersion: list.metadata.resourceVersion, timeoutSeconds: 2, allowWatchBookmarks: true };
      new k8s.Watch(kc).watch(`/api/v1/namespaces/${namespace}/configmaps`, query,
        (type) => type === 'BOOKMARK' || seen.push(type), (error) => (error ? reject(error) : resolve())).catch(reject);
    });
    assert.deepEqual(seen, ['ADDED', 'DELETED']);
  },

  async 'exec carries input, output, errors and the exit code'(namespace) {
    await running(namespace, 'sh', ['sleep', '300']);
    const [out, err, input] = [collect(), collect(), new PassThrough()];
    const status = await new Promise((resolve, reject) => {
      const command = ['sh', '-c', 'read line; echo "got $line"; echo oops >&2; exit 3'];
      new k8s.Exec(kc).exec(namespace, 'sh', 'main', command, out, err, input, false, resolve).catch(reject);
      input.write('this\n');
    });
    assert.equal(out.text(), 'got this\n');
    assert.equal(err.text(), 'oops\n');
    assert.equal(status.reason, 'NonZeroExitCode');
    assert.deepEqual(status.details.causes, [{ reason: 'ExitCode', message: '3' }]);
  },

  async 'logs are followed'(namespace) {
    await running(namespace, 'talker', ['sh', '-c', 'for i in 1 2 3; do echo line $i; sleep 0.3; done; sleep 300']);
    const out = collect();
    const following = await new k8s.Log(kc).log(namespace, 'talker', 'main', out, { follow: true });
    await eventually('three lines', () => out.text().split('\n').length > 3, 20);
    following.abort();
    assert.equal(out.text(), 'line 1\nline 2\nline 3\n');
    assert.equal(await core.readNamespacedPodLog({ namespace, name: 'talker', tailLines: 1 }), 'line 3\n');
  },

  async 'ports are forwarded'(namespace) {
    await running(namespace, 'web', ['sh', '-c', 'echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp']);
    const forward = new k8s.PortForward(kc);
    const server = net.createServer((socket) => forward.portForward(namespace, 'web', [8080], socket, null, socket));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const ask = async () => (await fetch(`http://127.0.0.1:${server.address().port}/index.html`)).text();
    assert.equal(await eventually('the answer', () => ask().catch(() => null), 20), 'served\n');
    server.close();
    server.closeAllConnections?.();
  },

  async 'a deployment rolls out and scales'(namespace) {
    const labels = { app: 'd' };
    const template = { metadata: { labels }, spec: pod('d', ['sleep', '300']).spec };
    await apps.createNamespacedDeployment({ namespace, body: { metadata: { name: 'd' }, spec: { replicas: 1, selector: { matchLabels: labels }, template } } });
    const ready = (n) => async () => (await apps.readNamespacedDeployment({ namespace, name: 'd' })).status.readyReplicas === n;
    await eventually('one replica', ready(1));
    const scale = await apps.readNamespacedDeploymentScale({ namespace, name: 'd' });
    scale.spec.replicas = 2;
    await apps.replaceNamespacedDeploymentScale({ namespace, name: 'd', body: scale });
    await eventually('two replicas', ready(2));
  },

  async 'objects of any kind go by their apiVersion and kind'(namespace) {
    const group = `${namespace}.example`;
    const schema = { openAPIV3Schema: { type: 'object', properties: { spec: { type: 'object', properties: { n: { type: 'integer' } } } } } };
    await objects.create({
      apiVersion: 'apiextensions.k8s.io/v1', kind: 'CustomResourceDefinition', metadata: { name: `things.${group}` },
      spec: { group, scope: 'Namespaced', names: { plural: 'things', kind: 'Thing' }, versions: [{ name: 'v1', served: true, storage: true, schema }] },
    });
    const thing = { apiVersion: `${group}/v1`, kind: 'Thing', metadata: { name: 't', namespace }, spec: { n: 1 } };
    await eventually('the new kind', () => objects.create(thing).catch(() => null), 20);
    const read = await objects.read(thing);
    read.spec.n = 2;
    assert.equal((await objects.replace(read)).spec.n, 2);
    assert.equal((await objects.list(`${group}/v1`, 'Thing', namespace)).items.length, 1);
    await objects.delete(thing);
    assert.equal(await code(objects.read(thing)), 404);
    await objects.delete({ apiVersion: 'apiextensions.k8s.io/v1', kind: 'CustomResourceDefinition', metadata: { name: `things.${group}` } });
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const namespace = `js-${randomBytes(4).toString('hex')}`;
  const start = Date.now();
  try {
    await core.createNamespace({ body: { metadata: { name: namespace } } });
    await eventually('the service account', async () => (await core.listNamespacedServiceAccount({ namespace })).items.length);
    await check(namespace);
    console.log(`  ok    ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed++;
    console.log(`  FAIL  ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)\n${error.stack ?? error}\n${error.body ?? ''}`);
  }
  await core.deleteNamespace({ name: namespace }).catch(() => {});
}
console.log(`${Object.keys(checks).length - failed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
