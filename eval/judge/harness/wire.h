// C++ values as bytes, by the types of the function's signature: both sides are compiled from the same one.
#pragma once
#include <bits/stdc++.h>
#include <fcntl.h>
#include <unistd.h>
#ifdef MOE_BOOST
#include <boost/any.hpp>
#endif

namespace moe_wire {

constexpr std::size_t LIMIT = 16 << 20;  // bytes of one message

struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Writer {
    std::string data;
    void raw(const void* bytes, std::size_t size) { data.append(static_cast<const char*>(bytes), size); }
};

struct Reader {
    const std::string& data;
    std::size_t at = 0;
    void raw(void* bytes, std::size_t size) {
        if (size > data.size() - at) throw Broken("a message is too short");
        std::memcpy(bytes, data.data() + at, size);
        at += size;
    }
    std::size_t count() {
        std::uint64_t size = 0;
        raw(&size, sizeof size);
        if (size > data.size() - at) throw Broken("a message claims more elements than it has bytes");
        return size;
    }
};

inline void put_count(Writer& out, std::uint64_t size) { out.raw(&size, sizeof size); }

template <class T, class = void>
struct Code;

template <class T>
struct Code<T, std::enable_if_t<std::is_arithmetic_v<T> || std::is_enum_v<T>>> {
    static void put(Writer& out, const T& value) { out.raw(&value, sizeof value); }
    static T get(Reader& in) {
        T value{};
        if constexpr (std::is_same_v<T, bool>) {
            char byte = 0;
            in.raw(&byte, 1);
            value = byte != 0;
        } else {
            in.raw(&value, sizeof value);
        }
        return value;
    }
};

template <>
struct Code<std::string> {
    static void put(Writer& out, const std::string& value) {
        put_count(out, value.size());
        out.raw(value.data(), value.size());
    }
    static std::string get(Reader& in) {
        std::string value(in.count(), '\0');
        in.raw(value.data(), value.size());
        return value;
    }
};

template <class C>
struct Sequence {
    static void put(Writer& out, const C& value) {
        put_count(out, value.size());
        for (auto&& part : value) Code<typename C::value_type>::put(out, part);
    }
    static C get(Reader& in) {
        C value;
        for (std::size_t left = in.count(); left > 0; --left) value.insert(value.end(), Code<typename C::value_type>::get(in));
        return value;
    }
};

template <class T> struct Code<std::vector<T>> : Sequence<std::vector<T>> {};
template <class T> struct Code<std::list<T>> : Sequence<std::list<T>> {};
template <class T> struct Code<std::deque<T>> : Sequence<std::deque<T>> {};
template <class T> struct Code<std::set<T>> : Sequence<std::set<T>> {};
template <class T> struct Code<std::multiset<T>> : Sequence<std::multiset<T>> {};
template <class T> struct Code<std::unordered_set<T>> : Sequence<std::unordered_set<T>> {};
template <class K, class V> struct Code<std::map<K, V>> : Sequence<std::map<K, V>> {};
template <class K, class V> struct Code<std::unordered_map<K, V>> : Sequence<std::unordered_map<K, V>> {};

template <class T, std::size_t N>
struct Code<std::array<T, N>> {
    static void put(Writer& out, const std::array<T, N>& value) {
        for (const T& part : value) Code<T>::put(out, part);
    }
    static std::array<T, N> get(Reader& in) {
        std::array<T, N> value;
        for (T& part : value) part = Code<T>::get(in);
        return value;
    }
};

template <class A, class B>
struct Code<std::pair<A, B>> {
    static void put(Writer& out, const std::pair<A, B>& value) {
        Code<std::remove_const_t<A>>::put(out, value.first);
        Code<B>::put(out, value.second);
    }
    static std::pair<A, B> get(Reader& in) {
        auto first = Code<std::remove_const_t<A>>::get(in);
        return {std::move(first), Code<B>::get(in)};
    }
};

template <class... T>
struct Code<std::tuple<T...>> {
    static void put(Writer& out, const std::tuple<T...>& value) {
        std::apply([&](const T&... part) { (Code<T>::put(out, part), ...); }, value);
    }
    static std::tuple<T...> get(Reader& in) { return std::tuple<T...>{Code<T>::get(in)...}; }
};

template <class T>
struct Code<std::optional<T>> {
    static void put(Writer& out, const std::optional<T>& value) {
        Code<bool>::put(out, value.has_value());
        if (value) Code<T>::put(out, *value);
    }
    static std::optional<T> get(Reader& in) { return Code<bool>::get(in) ? std::optional<T>(Code<T>::get(in)) : std::nullopt; }
};

template <class... T>
struct Code<std::variant<T...>> {
    static void put(Writer& out, const std::variant<T...>& value) {
        put_count(out, value.index());
        std::visit([&](const auto& part) { Code<std::decay_t<decltype(part)>>::put(out, part); }, value);
    }
    template <std::size_t I = 0>
    static std::variant<T...> pick(Reader& in, std::uint64_t index) {
        if constexpr (I == sizeof...(T)) throw Broken("a variant has no such alternative");
        else if (index == I) return std::variant<T...>(std::in_place_index<I>, Code<std::variant_alternative_t<I, std::variant<T...>>>::get(in));
        else return pick<I + 1>(in, index);
    }
    static std::variant<T...> get(Reader& in) {
        std::uint64_t index = 0;
        in.raw(&index, sizeof index);
        return pick(in, index);
    }
};

// `any` carries one of the types that tests put in.
template <class Any, class... T>
struct AnyOf {
    static void put(Writer& out, const Any& value) {
        char tag = 0;
        bool found = value.type() == typeid(void);  // empty
        if (found) out.raw(&tag, 1);
        ((found = found || (++tag, value.type() == typeid(T) ? (out.raw(&tag, 1), Code<T>::put(out, cast<T>(value)), true) : false)), ...);
        if (!found) throw Broken("an any holds a type that cannot cross between the tests and the program");
    }
    static Any get(Reader& in) {
        char wanted = 0, tag = 0;
        in.raw(&wanted, 1);
        Any value;
        ((++tag == wanted ? void(value = Code<T>::get(in)) : void()), ...);
        if (wanted < 0 || wanted > tag) throw Broken("an any has no such type");
        return value;
    }
    template <class T1>
    static T1 cast(const Any& value) {
        using std::any_cast;
#ifdef MOE_BOOST
        using boost::any_cast;
#endif
        return any_cast<T1>(value);
    }
};
template <> struct Code<std::any> : AnyOf<std::any, int, long, bool, char, float, double, std::string, std::vector<int>, std::vector<std::string>> {};
#ifdef MOE_BOOST
template <> struct Code<boost::any> : AnyOf<boost::any, int, long, bool, char, float, double, std::string, std::vector<int>, std::vector<std::string>> {};
#endif

// Messages of 8 bytes of length and the data, on descriptors 3 (in) and 4 (out). False at the end of the stream.
inline bool read_all(char* data, std::size_t size) {
    while (size > 0) {
        ssize_t count = ::read(3, data, size);
        if (count <= 0) return false;
        data += count;
        size -= count;
    }
    return true;
}

inline bool receive(std::string& data) {
    std::uint64_t size = 0;
    if (!read_all(reinterpret_cast<char*>(&size), sizeof size)) return false;
    if (size > LIMIT) throw Broken("a message is over the limit");
    data.resize(size);
    return read_all(data.data(), size);
}

inline bool send(const std::string& data) {
    std::uint64_t size = data.size();
    std::string message(reinterpret_cast<const char*>(&size), sizeof size);
    message += data;
    for (std::size_t done = 0; done < message.size();) {
        ssize_t count = ::write(4, message.data() + done, message.size() - done);
        if (count <= 0) return false;
        done += count;
    }
    return true;
}

template <class T>
constexpr bool written_back = (std::is_lvalue_reference_v<T> && !std::is_const_v<std::remove_reference_t<T>>) || std::is_pointer_v<std::decay_t<T>>;

// An array reaches a function as a pointer, without its length; it crosses as a vector.
template <class A>
using Stored = std::conditional_t<std::is_same_v<std::decay_t<A>, std::string_view>, std::string, std::conditional_t<std::is_pointer_v<std::decay_t<A>>, std::vector<std::remove_cv_t<std::remove_pointer_t<std::decay_t<A>>>>, std::decay_t<A>>>;

template <class A>
constexpr bool is_array = std::is_pointer_v<std::decay_t<A>>;

inline std::vector<char>& whole(const std::string& text) {
    static std::deque<std::vector<char>> kept;
    return kept.emplace_back(text.c_str(), text.c_str() + text.size() + 1);
}
template <class T>
std::vector<T>& whole(std::vector<T>& values) {
    return values;
}

// The standard exceptions, the derived before their bases: the first that fits is thrown again on the tests' side.
template <class... E>
struct Exceptions {
    static char number(const std::exception& error) {
        char number = 'a';
        ((dynamic_cast<const E*>(&error) ? true : (++number, false)) || ...);
        return number;
    }
    static void raise(char wanted, const std::string& text) {
        char number = 'a';
        ((number++ == wanted ? throw E(text) : void()), ...);
        throw std::runtime_error(text);
    }
};
using Standard = Exceptions<std::invalid_argument, std::domain_error, std::length_error, std::out_of_range, std::logic_error, std::range_error,
                            std::overflow_error, std::underflow_error, std::runtime_error>;
inline bool rethrow = false;  // whether the tests want the program's exceptions, or fail on any

using Server = std::function<std::string(const std::string&, std::size_t)>;

// Answers calls until the tests are gone; where there are several functions, a message begins with the number of one.
inline int serve_all(const std::vector<Server>& servers, bool numbered = true) {
    std::string message, answer;
    while (receive(message)) {
        try {
            answer = servers.at(numbered ? static_cast<unsigned char>(message.at(0)) : 0)(message, numbered);
        } catch (const std::bad_alloc&) {
            answer = "m";
        } catch (const std::exception& error) {
            answer = std::string("e") + Standard::number(error) + error.what();
        } catch (...) {
            answer = "e?an exception that is no std::exception";
        }
        if (!send(answer)) break;
    }
    return 0;
}

template <class F>
struct Function;

template <class R, class... A>
struct Function<R(A...)> {
    using Arguments = std::tuple<Stored<A>...>;

    static void put_back(Writer& out, Arguments& arguments) {
        std::apply([&](auto&... value) { ((written_back<A> ? Code<Stored<A>>::put(out, value) : void()), ...); }, arguments);
    }

    template <class Argument>
    static decltype(auto) pass(Stored<Argument>& value) {
        if constexpr (is_array<Argument>) return value.data();
        else if constexpr (std::is_same_v<std::decay_t<Argument>, std::string_view>) return std::string_view(value);
        else return static_cast<Argument&&>(value);
    }

    // The candidate's side: answers calls until the tests are gone.
    static int serve(R (*function)(A...)) { return serve_all({server(function)}, false); }

    // Turns a message from its place `at` into the answer to it.
    static Server server(R (*function)(A...)) {
        return [function](const std::string& message, std::size_t at) {
            Reader in{message, at};
            Arguments arguments{Code<Stored<A>>::get(in)...};
            Writer out;
            out.data = "v";
            auto call = [&](auto&... value) -> R { return function(pass<A>(value)...); };
            if constexpr (std::is_void_v<R>) std::apply(call, arguments);
            else Code<std::decay_t<R>>::put(out, std::apply(call, arguments));
            put_back(out, arguments);
            return out.data;
        };
    }

    // The tests' side.
    template <class... V>
    static R call(V&... value) {
        return ask({}, value...);
    }
    template <class... V>
    static R call_number(char number, V&... value) {
        return ask({std::string(1, number)}, value...);
    }
    template <class... V>
    static R ask(Writer out, V&... value);
};

// The tests' verdict is one line on stderr: the nonce, then JSON.
inline void finish(const char* outcome, std::string detail = "") {
    for (char& c : detail)
        if (c < ' ' || c > '~' || c == '"' || c == '\\') c = ' ';
    std::string line = std::string("\n") + std::getenv("NONCE") + " [\"" + outcome + "\", \"" + detail.substr(0, 500) + "\"]\n";
    if (::write(2, line.data(), line.size()) < 0) std::_Exit(1);
    std::_Exit(0);
}

template <class A, class V>
void get_back(Reader& in, V& value) {
    if constexpr (written_back<A>) value = Code<Stored<A>>::get(in);
}

template <class R, class... A>
template <class... V>
R Function<R(A...)>::ask(Writer out, V&... value) {
    try {
        (Code<Stored<A>>::put(out, Stored<A>(value)), ...);
    } catch (const Broken& error) {
        finish("broken", error.what());
    }
    std::string message;
    try {
        if (!send(out.data) || !receive(message)) finish("gone", "the program ended before it answered");
        if (message.empty()) throw Broken("the program's answer is empty");
        if (message[0] == 'm') finish("memory", "std::bad_alloc");
        if (message[0] == 'e' && message.size() > 1 && rethrow) Standard::raise(message[1], message.substr(2));
        if (message[0] != 'v') finish("failed", message.substr(std::min<std::size_t>(message.size(), 2)));
        Reader in{message, 1};
        auto back = [&] { (get_back<A>(in, value), ...); };
        if constexpr (std::is_void_v<R>) {
            back();
        } else {
            auto result = Code<std::decay_t<R>>::get(in);
            back();
            return result;
        }
    } catch (const Broken& error) {
        finish("failed", error.what());
        throw;
    }
}

// Set up before the tests' main, which may lack arguments: SIGPIPE says nothing, and a normal end with status 0 is a pass.
struct Verdict {
    Verdict() {
        std::signal(SIGPIPE, SIG_IGN);
        ::on_exit([](int status, void*) { finish(status == 0 ? "passed" : "failed", status == 0 ? "" : "exit status " + std::to_string(status)); }, nullptr);
    }
};

}  // namespace moe_wire
