// The player's place in the WebUI: above the gallery of txt2img and img2img, in the place of the picture that is a clip.

const zs2Session = []; // the clips that were made since the page was loaded, the newest first
let zs2Recent = [];

// They outlive a reload of the page, in this tab of the browser.
function zs2Remember(clips, tab) {
    for (const clip of [...clips].reverse()) {
        clip.tab = tab;
        clip.made = Date.now(); // a name may have been that of another clip, whose file was deleted
        const known = zs2Session.findIndex(({name}) => name === clip.name);
        if (known >= 0) zs2Session.splice(known, 1);
        zs2Session.unshift(clip);
    }
    try {
        sessionStorage.setItem('zs2_clips', JSON.stringify(zs2Session.slice(0, 50)));
    } catch { // the browser keeps nothing
    }
}

function zs2Recall() {
    try {
        zs2Session.push(...JSON.parse(sessionStorage.getItem('zs2_clips') || '[]'));
    } catch { // nor is there anything that can be read
    }
}

// The clips of a job, of `zs2_clips` in its result, which has an entry for each file.
function zs2ClipsOf(entries) {
    const clips = new Map();
    for (const entry of entries) {
        const name = entry.plays || entry.name;
        const key = entry.plays || entry.path.replace(/\.\w+$/, '');
        if (!name) continue; // it was not kept
        const label = (entry.path || entry.name).split(/[\\/]/).pop();
        const {frames, fps, grid} = entry;
        if (!clips.has(key)) clips.set(key, {name, label, frames, fps, grid, files: []});
        if (entry.name) clips.get(key).files.push(entry.name);
    }
    return [...clips.values()];
}

// What the items of the gallery are after a job: {clip} or {clip, frame}, or null for another picture.
class Zs2Job {
    constructor(info) {
        this.clips = zs2ClipsOf(info.zs2_clips || []); // of a plot the playing grid as well, which is its main one
        this.grid = this.clips.find(({grid}) => grid);
        this.single = this.clips.filter(({grid}) => !grid);
        this.main = this.grid || this.clips[0];
        this.first = info.index_of_first_image || 0;
    }

    item(index, count) {
        const {single, first, grid} = this;
        if (index < 0) return null;
        if (grid && first && index === 0) return {clip: grid};
        const each = (count - first) / single.length;
        if (!grid && first === single.length && each >= Math.min(2, single[0].frames)) { // the clips, then their frames
            if (index < first) return {clip: single[index]};
            const of = Math.min(Math.floor(each), single[0].frames);
            const clip = single[Math.floor((index - first) / of)];
            return clip ? {clip, frame: (index - first) % of} : null;
        }
        const clip = single[index - first]; // of a script: a picture for each
        return clip ? {clip} : null;
    }

    // The place of a clip in the gallery.
    place(clip, count) {
        for (let index = 0; index < count; index++) {
            const item = this.item(index, count);
            if (item && item.frame === undefined && item.clip === clip) return index;
        }
        return -1;
    }
}

// The frames while they are sampled, and how far it is.
class Zs2Live {
    constructor() {
        this.text = zs2Element('p', {class: 'zs2-status'});
        this.strip = zs2Element('img', {class: 'zs2-live-strip', alt: zs2Words('The frames as they are now'), hidden: true});
        this.element = zs2Element('div', {class: 'zs2-player zs2-live', hidden: true}, this.strip, this.text);
    }

    // Asks each second for as long as `goesOn()`.
    async follow(goesOn) {
        this.strip.hidden = true; // it is of another job
        if (this.follows) return;
        this.follows = true;
        let seen = '';
        while (goesOn()) {
            const live = await zs2Ask(`live?strip=${encodeURIComponent(seen)}`).then(answer => answer.json(), () => ({}));
            if (live.strip) {
                seen = live.strip.id;
                this.strip.src = live.strip.image;
                this.strip.hidden = false;
            }
            zs2SetText(this.text, zs2LiveWords(live));
            this.element.hidden = !live.running;
            await zs2Pause(1000);
        }
        this.element.hidden = true;
        this.follows = false;
    }
}

function zs2LiveWords({parts, seconds_left: seconds}) {
    const words = (parts || []).map(([text, ...numbers]) => zs2Words(text, ...numbers));
    if (seconds !== null && seconds !== undefined) {
        const left = seconds < 90 ? [Math.max(1, Math.round(seconds)), 's'] : [Math.round(seconds / 60), 'min'];
        words.push(zs2Words('about {0} {1} left', ...left));
    }
    return words.join(', ');
}

class Zs2Place {
    constructor(tab) {
        this.tab = tab;
        this.container = gradioApp().getElementById(`${tab}_gallery_container`);
        this.gallery = gradioApp().getElementById(`${tab}_gallery`);
        this.job = null;
        this.info = '';
        this.selected = -1;
        this.player = new Zs2Player([zs2Actions(tab, clips => this.showMade(clips))]);
        this.live = new Zs2Live();
        this.player.element.hidden = true;
        this.container.prepend(zs2Element('div', {class: 'zs2-place'}, this.live.element, this.player.element));
        this.player.on('act', () => this._backToClip());
        this.player.on('choices', () => this._askForRecent());
        this.player.on('works', works => works && this.live.follow(() => this.player.actions.busy));
        for (const button of [`save_${tab}`, `save_zip_${tab}`]) {
            gradioApp().getElementById(button)?.addEventListener('click', () => this._save());
        }
        this.made = this._madeByPanel();
        const observer = new MutationObserver(() => this.check());
        observer.observe(this.gallery, {subtree: true, childList: true, attributes: true, attributeFilter: ['class']});
        observer.observe(this.container.parentElement, {childList: true}); // the host's progress comes and goes there
        this._recall();
    }

    // After a reload of the page its last clip is there again.
    _recall() {
        this.own = zs2Session.find(({tab}) => tab === this.tab) || null;
        if (!this.own) return;
        this._offer();
        this.player.show(this.own, false);
    }

    get thumbnails() {
        return [...this.gallery.querySelectorAll('.thumbnails > .thumbnail-item.thumbnail-small')];
    }

    // The thumbnails, or the pictures of the grid, which is there instead of them.
    get items() {
        const {thumbnails} = this;
        return thumbnails.length ? thumbnails : [...this.gallery.querySelectorAll('.thumbnail-item')];
    }

    get running() {
        return Boolean(this.container.parentElement.querySelector(':scope > .progressDiv'));
    }

    // Looks whether a job began or ended, and what is chosen in the gallery.
    check() {
        const {running} = this;
        if (running && !this.ran) this._begin();
        this.ran = running;
        const info = gradioApp().querySelector(`#generation_info_${this.tab} textarea`)?.value || '';
        if (info !== this.info) this._take(info);
        const made = this._madeByPanel().find((data, place) => data && data !== this.made[place]);
        if (made && !this.player.actions.busy) this.showMade(JSON.parse(made)); // else who works shows it
        this._sync();
    }

    _begin() {
        this.player.track.pause();
        if (zs2IsOn(this.tab)) this.live.follow(() => this.running);
    }

    _take(info) {
        this.info = info;
        let result = {};
        try {
            result = JSON.parse(info || '{}');
        } catch { // it is of no job
        }
        const job = new Zs2Job(result);
        this.job = job.clips.length ? job : null;
        this.own = null;
        this.fresh = Boolean(this.job);
        this.selected = -1;
        if (!this.job) {
            this.player.track.pause();
            return;
        }
        const {main, clips} = this.job;
        zs2Remember([main, ...clips.filter(clip => clip !== main)], this.tab);
        this._offer();
    }

    // What each of the panel's parts on finished clips has made last.
    _madeByPanel() {
        const results = ['going_on_result', 'postprocess_result'].map(name => zs2Part(this.tab, name));
        return results.map(result => result?.querySelector('.zs2-made')?.dataset.clips);
    }

    // Shows what a button made, beside the job's clips.
    showMade(entries) {
        this.made = this._madeByPanel();
        const clips = entries.length ? [{name: entries[0].name, files: entries.map(({name}) => name)}] : [];
        if (!clips.length) return;
        zs2Remember(clips, this.tab);
        this.own = clips[0];
        this._offer();
        this._returnTo(this.job?.main);
        this.player.show(clips[0]);
    }

    _sync() {
        const {job, player, gallery} = this;
        const visible = !this.running && Boolean(job || this.own) && window.opts?.zs2_player !== false;
        const thumbnails = this.thumbnails;
        const selected = thumbnails.findIndex(thumbnail => thumbnail.classList.contains('selected'));
        if (visible && this.fresh && this._choosesMain()) return; // and comes back here
        const item = job?.item(selected, thumbnails.length);
        const full = !job || (item && item.frame === undefined);
        player.element.hidden = !visible;
        player.element.classList.toggle('zs2-compact', !full);
        gallery.classList.toggle('zs2-playing', Boolean(visible && job && full));
        if (visible && item && selected !== this.selected) this._choose(item);
        if (visible) this.selected = selected;
        if (visible && !full && !this.returns) player.track.pause();
    }

    // After a job its clip is chosen, whatever was before.
    _choosesMain() {
        if (!this.items.length) return false;
        this.fresh = false;
        return this._select(this.job.main);
    }

    _choose({clip, frame}) {
        const {player} = this;
        if (this.returns) return; // the user moves in the player
        const other = !zs2IsSameClip(player.clip, clip);
        if (frame === undefined) {
            if (other) player.show(clip);
        } else {
            if (other) player.show(clip, false);
            this.returns = true;
            player.seek(frame);
            this.returns = false;
        }
    }

    // Who plays or steps wants to see the clip.
    _backToClip() {
        if (this.returns || !this.job || !this.player.element.classList.contains('zs2-compact')) return;
        const clip = this.job.clips.find(({name}) => name === this.player.clip?.name) || this.job.main;
        this._returnTo(clip);
    }

    // Chooses a clip in the gallery, and leaves the player as it is.
    async _returnTo(clip) {
        this.returns = true;
        for (let waited = 0; waited < 20 && this._select(clip); waited++) await zs2Pause(50);
        this._sync();
        this.returns = false;
    }

    // Chooses a clip of the job in the gallery. Whether it was another that was chosen.
    _select(clip) {
        const {items} = this;
        const item = clip && items[this.job.place(clip, items.length)];
        if (!item || item.classList.contains('selected')) return false;
        item.click();
        return true;
    }

    _save() {
        const {element} = this.player;
        if (!element.hidden && !element.classList.contains('zs2-compact')) this.player.actions.save();
    }

    _offer() {
        const now = this.job?.clips || [];
        const before = clips => clip => !clips.some(({name}) => name === clip.name);
        const session = zs2Session.filter(before(now));
        const recent = zs2Recent.filter(before([...now, ...session]));
        this.player.offer([['This job', now], ['This session', session], ['Recent', recent]]);
    }

    async _askForRecent() {
        try {
            const clips = await (await zs2Ask('clips?limit=150')).json();
            zs2Recent = clips.filter(({name}) => !name.startsWith('previews/')).slice(0, 50); // of clips that are saved
            this._offer();
        } catch (error) {
            this.player.fail(error);
        }
    }
}

onUiLoaded(() => {
    const tabs = ['txt2img', 'img2img'].filter(tab => zs2Part(tab, 'enabled')
        && gradioApp().getElementById(`${tab}_gallery_container`) && gradioApp().getElementById(`${tab}_gallery`));
    onOptionsAvailable(() => {
        if (opts.zs2_player === false) return;
        zs2Recall();
        const places = tabs.map(tab => new Zs2Place(tab));
        onAfterUiUpdate(() => places.forEach(place => place.check()));
    });
});
