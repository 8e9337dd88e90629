// C++ values as bytes, by the types of the function's signature: both sides are compiled from the same one.
#pragma once
#include <bits/stdc++.h>
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

}  // namespace moe_wire
